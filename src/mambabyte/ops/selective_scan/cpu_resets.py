"""The positions of a chunk between resets, forwards and back, so that the loops over them have no test.

What a reset drops is replaced, never multiplied by 0: it may be infinite.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from mambabyte.ops.panels import Place
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_values import Int, Vec


def between_resets(f: Function, at: Place, h: list[Vec], scan: Callable[[Int, Int, list[Vec]], list[Vec]]) -> list[Vec]:
    """Run scan(begin, end, h) over the stretches between resets, h being zero where a reset begins one."""
    no_resets = f.index("reset_stride").compare("==", 0)

    def stretch(carry: list) -> list:
        begin, h = carry[0], carry[1:]
        end = f.repeat_while(
            [f.select(no_resets, at.steps, begin + 1)],
            lambda c: f.b.and_(c[0].compare("<", at.steps), f.b.not_(_is_reset(f, at, c[0].minimum(at.steps - 1)))),
            lambda c: [c[0] + 1],
        )[0]
        bit = _is_reset(f, at, begin)
        return [end, *scan(begin, end, [f.select(bit, f.vec(0.0), item) for item in h])]

    return f.repeat_while([f.number(0), *h], lambda carry: carry[0].compare("<", at.steps), stretch)[1:]


def back_between_resets(
    f: Function,
    at: Place,
    carry: list[Vec],
    step: Callable[[Int, list[Vec]], list[Vec]],
    step_at_reset: Callable[[Int, list[Vec]], list[Vec]],
) -> list[Vec]:
    """Run step(t, carry), or where a document starts the other one, from the chunk's last position to its first."""
    no_resets = f.index("reset_stride").compare("==", 0)

    def stretch(carry: list) -> list:
        end, carry = carry[0], carry[1:]
        begin = f.repeat_while(
            [f.select(no_resets, f.number(0), end - 1)],
            lambda c: f.b.and_(c[0].compare(">", 0), f.b.not_(_is_reset(f, at, c[0]))),
            lambda c: [c[0] - 1],
        )[0]
        after = f.select(_is_reset(f, at, begin), begin + 1, begin)
        carry = f.loop(after, end, carry, step, reverse=True)
        return [begin, *f.loop(begin, after, carry, step_at_reset)]

    return f.repeat_while([at.steps, *carry], lambda carry: carry[0].compare(">", 0), stretch)[1:]


def _is_reset(f: Function, at: Place, t: Int) -> ir.Value:
    stride = f.index("reset_stride")  # 0: there are none, and the pointer is to one byte that is zero
    return (f.pointer("resets") + (at.row + t) * stride).bit()
