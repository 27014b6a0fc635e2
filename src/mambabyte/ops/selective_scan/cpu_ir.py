"""The selective scan's CPU kernels, forward and backward, written in the vocabulary of `mambabyte.ops.vector_ir`.

Work is cut as `mambabyte.ops.panels` describes: a task is one batch row and a panel of channel blocks. A vector holds a
block of channels at one position and one state, and the recurrence runs over time in registers.
Per chunk and block:
  prepare   dt -> delta = softplus(dt + bias), u = delta x, and what the gate needs, into scratch memory
  scan      the recurrence, for `resident` states at a time in registers, asking for the next chunk's rows meanwhile
  finish    gate, round, store
Only prepare and finish know of element types, masks and options; the inner loops are the same for all.
Equations: docs/kernels.md, "CPU".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from mambabyte.ops.panels import CHUNK, COUNTS, Place, masked_or_not, row, walk
from mambabyte.ops.selective_scan.cpu_resets import back_between_resets, between_resets
from mambabyte.ops.target import Target
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_math import LN2, exp2, fma, sigmoid, softplus_and_slope, sums
from mambabyte.ops.vector_values import BYTE, FLOAT, Element, Int, Pointer, Vec, arrays


@dataclass(frozen=True)
class Variant:
    """What a kernel is specialised on."""

    states: int
    element: Element
    softplus: bool
    gate: bool


class Scratch:
    """Per-position vectors of the chunk being worked on, by name."""

    def __init__(self, f: Function, names: str):
        self.names = names.split()
        self.base = f.scratch(CHUNK * len(self.names))

    def at(self, name: str, step: Int) -> Pointer:
        """Where the vector of this name and step lies."""
        lanes = self.base.f.target.lanes
        return self.base + (step * len(self.names) + self.names.index(name)) * lanes


FORWARD_ROWS, BACKWARD_ROWS = ("x", "dt", "z", "y"), ("x", "dt", "z", "dy", "dx", "ddt", "dz")
WRITTEN = {"y", "dx", "ddt", "dz"}
INTEGERS = (*COUNTS, "x_row", "dt_row", "z_row", "reset_stride")


def forward(target: Target, v: Variant) -> Function:
    """Write the forward kernel: y, the final state (in place of the initial one) and, if `keep`, a state per chunk."""
    floats = arrays(FLOAT, "A", "D", "bias", "B", "C", "state", "checkpoints")
    pointers = {**arrays(v.element, *FORWARD_ROWS), **floats, "resets": BYTE}
    f = Function("scan_forward", target, pointers, [*INTEGERS, "keep"])
    scratch = Scratch(f, "delta u y")

    def visit(at: Place) -> None:
        size = v.states * target.lanes
        state = f.pointer("state") + (at.batch * f.index("blocks") + at.block) * size
        kept = f.pointer("checkpoints") + _checkpoint(f, at) * size
        masked_or_not(f, at, lambda mask: _prepare_forward(f, v, scratch, at, mask))

        def group(first: Int, count: int) -> None:
            offset = first * target.lanes
            h = [(state + offset + n * target.lanes).load() for n in range(count)]
            f.when(f.index("keep").compare("!=", 0), lambda: _store(kept + offset, h))
            h = between_resets(f, at, h, lambda begin, end, h: _scan(f, v, scratch, at, begin, end, first, h))
            _store(state + offset, h)

        _state_groups(f, v.states, target.resident, group)
        masked_or_not(f, at, lambda mask: _finish_forward(f, v, scratch, at, mask))

    walk(f, visit)
    return f


def _prepare_forward(f: Function, v: Variant, scratch: Scratch, at: Place, mask: ir.Value | None) -> None:
    bias, skip = ((f.pointer(name) + at.channel).load() for name in ("bias", "D"))

    def step(t: Int, _: list) -> list:
        x = row(f, at, "x", t).load(mask)
        delta = row(f, at, "dt", t).load(mask) + bias
        if v.softplus:
            delta, _slope = softplus_and_slope(delta)
        scratch.at("delta", t).store(delta)
        scratch.at("u", t).store(delta * x)
        scratch.at("y", t).store(skip * x)
        return []

    f.loop(0, at.steps, [], step)


def _finish_forward(f: Function, v: Variant, scratch: Scratch, at: Place, mask: ir.Value | None) -> None:
    def step(t: Int, _: list) -> list:
        y = scratch.at("y", t).load()
        if v.gate:
            z = row(f, at, "z", t).load(mask)
            y = y * (z * sigmoid(z))
        row(f, at, "y", t).store(y, mask)
        return []

    f.loop(0, at.steps, [], step)


def _scan(
    f: Function, v: Variant, scratch: Scratch, at: Place, begin: Int, end: Int, first: Int, h: list[Vec]
) -> list[Vec]:
    """h = 2^(delta A) h + u B, y += C h over steps begin..end for the states from `first` on."""
    A = _blocked(f, v, "A", at, first)

    def step(t: Int, h: list[Vec]) -> list[Vec]:
        _prefetch(f, v, at, FORWARD_ROWS, t + CHUNK)
        delta, u = scratch.at("delta", t).load(), scratch.at("u", t).load()
        B, C = (f.pointer(name) + (at.row + t) * v.states + first for name in "BC")
        partial = [scratch.at("y", t).load(), f.vec(0.0)]
        for n in range(len(h)):
            decay = exp2(delta * (A + n * f.target.lanes).load())
            h[n] = fma(decay, h[n], u * (B + n).splat())
            partial[n % 2] = fma(h[n], (C + n).splat(), partial[n % 2])
        scratch.at("y", t).store(partial[0] + partial[1])
        return h

    return f.loop(begin, end, h, step)


def backward(target: Target, v: Variant) -> Function:
    """Write the backward kernel: every gradient, with dB and dC as one partial sum for each panel.

    `adjoint` holds the gradient of the final state on entry and that of the initial state on return. dA, dD and dbias
    are sums over time for each batch row, added to what is there.
    """
    floats = arrays(FLOAT, "A", "D", "bias", "B", "C", "checkpoints", "adjoint", "dA", "dD", "dbias", "dBC")
    pointers = {**arrays(v.element, *BACKWARD_ROWS), **floats, "resets": BYTE}
    f = Function("scan_backward", target, pointers, [*INTEGERS, "dy_row"])
    lanes = target.lanes
    group_size = min(v.states, target.resident // 2)  # adjoint and dA of a group share the registers
    scratch = Scratch(f, "delta u dy slope gate y dx ddt")
    # h before a step and its decay side by side, and dB and dC too: arrays a multiple of 4 KiB apart would make loads
    # from one wait for stores to the other
    history = f.scratch((CHUNK + 1) * group_size * 2)
    products = f.scratch(CHUNK * v.states * 2)

    def visit(at: Place) -> None:
        masked_or_not(f, at, lambda mask: _prepare_backward(f, v, scratch, at, mask))

        def group(first: Int, count: int) -> None:
            kept = f.pointer("checkpoints") + (_checkpoint(f, at) * v.states + first) * lanes
            h = [(kept + n * lanes).load() for n in range(count)]
            _store_each(history, h, 2 * lanes)

            def rerun(begin: Int, end: Int, h: list[Vec]) -> list[Vec]:
                return _recompute(f, v, scratch, history, at, begin, end, first, h)

            between_resets(f, at, h, rerun)
            _reverse(f, v, scratch, history, products, at, first, count)

        _state_groups(f, v.states, group_size, group)
        masked_or_not(f, at, lambda mask: _finish_backward(f, v, scratch, at, mask))

    def clear(i: Int, _: list) -> list:
        (products + i * lanes).store(f.vec(0.0))
        return []

    walk(
        f,
        visit,
        reverse=True,
        before=lambda: f.loop(0, CHUNK * v.states * 2, [], clear),
        after_chunk=lambda panel, first_row, steps: _reduce(f, v, products, panel, first_row, steps),
    )
    return f


def _prepare_backward(f: Function, v: Variant, scratch: Scratch, at: Place, mask: ir.Value | None) -> None:
    """As forward, plus slope = d delta / d dt, the gradient of y before the gate, and gate = what times y is dz."""
    bias, skip = ((f.pointer(name) + at.channel).load() for name in ("bias", "D"))

    def step(t: Int, _: list) -> list:
        x, dy = row(f, at, "x", t).load(mask), row(f, at, "dy", t).load(mask)
        delta = row(f, at, "dt", t).load(mask) + bias
        if v.softplus:
            delta, slope = softplus_and_slope(delta)
            scratch.at("slope", t).store(slope())
        if v.gate:
            z = row(f, at, "z", t).load(mask)
            open_ = sigmoid(z)
            scratch.at("gate", t).store(dy * open_ * fma(z, 1.0 - open_, 1.0))
            scratch.at("y", t).store(skip * x)
            dy = dy * (z * open_)
        scratch.at("delta", t).store(delta)
        scratch.at("u", t).store(delta * x)
        scratch.at("dy", t).store(dy)
        for name in ("dx", "ddt"):
            scratch.at(name, t).store(f.vec(0.0))
        return []

    f.loop(0, at.steps, [], step)


def _recompute(
    f: Function,
    v: Variant,
    scratch: Scratch,
    history: Pointer,
    at: Place,
    begin: Int,
    end: Int,
    first: Int,
    h: list[Vec],
) -> list[Vec]:
    """The forward recurrence again, keeping every step's state before it and decay; y too where the gate needs it."""
    A, count, lanes = _blocked(f, v, "A", at, first), len(h), f.target.lanes

    def step(t: Int, h: list[Vec]) -> list[Vec]:
        _prefetch(f, v, at, BACKWARD_ROWS, t - CHUNK)
        delta, u = scratch.at("delta", t).load(), scratch.at("u", t).load()
        B, C = (f.pointer(name) + (at.row + t) * v.states + first for name in "BC")
        here = history + t * (count * 2 * lanes)
        y = scratch.at("y", t).load() if v.gate else None
        for n in range(count):
            decay = exp2(delta * (A + n * lanes).load())
            (here + (2 * n + 1) * lanes).store(decay)
            h[n] = fma(decay, h[n], u * (B + n).splat())
            (here + 2 * (count + n) * lanes).store(h[n])
            if y is not None:
                y = fma(h[n], (C + n).splat(), y)
        if y is not None:
            scratch.at("y", t).store(y)
        return h

    return f.loop(begin, end, h, step)


def _reverse(
    f: Function,
    v: Variant,
    scratch: Scratch,
    history: Pointer,
    products: Pointer,
    at: Place,
    first: Int,
    count: int,
) -> None:
    """The adjoint g = dL/dh back through the chunk: g += C dy; dB += u g; dC += dy h; then g *= decay.

    Where a document starts g becomes 0 and nothing flows through the decay: what lies before may be infinite.
    """
    lanes = f.target.lanes
    A = _blocked(f, v, "A", at, first)
    size = v.states * lanes
    place = (at.batch * f.index("blocks") + at.block) * size + first * lanes
    adjoint, dA = f.pointer("adjoint") + place, f.pointer("dA") + place

    def step(t: Int, carry: list[Vec], *, starts: bool = False) -> list[Vec]:
        g, dA = carry[:count], carry[count:]
        delta, u, dy = (scratch.at(name, t).load() for name in ("delta", "u", "dy"))
        B, C = (f.pointer(name) + (at.row + t) * v.states + first for name in "BC")
        here = history + t * (count * 2 * lanes)
        product = products + (t * v.states + first) * (2 * lanes)
        dx, ddt = scratch.at("dx", t).load(), scratch.at("ddt", t).load()
        for n in range(count):
            before, decay = (here + 2 * n * lanes).load(), (here + (2 * n + 1) * lanes).load()
            after = (here + 2 * (count + n) * lanes).load()
            to_B, to_C = product + 2 * n * lanes, product + (2 * n + 1) * lanes
            g[n] = fma(dy, (C + n).splat(), g[n])
            to_C.store(fma(dy, after, to_C.load()))
            to_B.store(fma(u, g[n], to_B.load()))
            dx = fma(g[n], (B + n).splat(), dx)
            if starts:
                g[n] = f.vec(0.0)
                continue
            g[n] = g[n] * decay
            through_decay = g[n] * before
            ddt = fma(through_decay, (A + n * lanes).load(), ddt)
            dA[n] = fma(through_decay, delta, dA[n])
        scratch.at("dx", t).store(dx)
        scratch.at("ddt", t).store(ddt)
        return [*g, *dA]

    start = [(p + n * lanes).load() for p in (adjoint, dA) for n in range(count)]
    carry = back_between_resets(f, at, start, step, lambda t, carry: step(t, carry, starts=True))
    _store(adjoint, carry[:count])
    _store(dA, carry[count:])


def _finish_backward(f: Function, v: Variant, scratch: Scratch, at: Place, mask: ir.Value | None) -> None:
    """dx = delta s + D dy, ddt = (x s + ln 2 q) slope with s = sum_n g B and q = sum_n g decay h_before A log2(e)."""
    skip = (f.pointer("D") + at.channel).load()
    place = (at.batch * f.index("blocks") + at.block) * f.target.lanes
    dD, dbias = f.pointer("dD") + place, f.pointer("dbias") + place

    def step(t: Int, sums: list[Vec]) -> list[Vec]:
        x = row(f, at, "x", t).load(mask)
        delta, dy, s, q = (scratch.at(name, t).load() for name in ("delta", "dy", "dx", "ddt"))
        ddt = fma(s, x, q * LN2)
        if v.softplus:
            ddt = ddt * scratch.at("slope", t).load()
        row(f, at, "dx", t).store(fma(s, delta, skip * dy), mask)
        row(f, at, "ddt", t).store(ddt, mask)
        if v.gate:
            row(f, at, "dz", t).store(scratch.at("gate", t).load() * scratch.at("y", t).load(), mask)
        return [fma(dy, x, sums[0]), sums[1] + ddt]

    sums = f.loop(0, at.steps, [dD.load(), dbias.load()], step)
    dD.store(sums[0])
    dbias.store(sums[1])


def _reduce(f: Function, v: Variant, products: Pointer, panel: Int, first_row: Int, steps: Int) -> None:
    """Sum the panel's dB and dC of a chunk over lanes into dBC (panels, batch * length, 2 states), and clear them."""
    lanes, count = f.target.lanes, 2 * v.states
    total = f.index("tasks") // f.index("panels") * f.index("length")

    def step(t: Int, _: list) -> list:
        out = f.pointer("dBC") + (panel * total + first_row + t) * count
        for first in range(0, count, lanes):
            here = [products + (t * count + k) * lanes for k in range(first, min(first + lanes, count))]
            totals = sums([p.load() for p in here])
            for p in here:
                p.store(f.vec(0.0))
            (out + first).store(totals, None if len(here) == lanes else f.mask_below(f.number(len(here))))
        return []

    f.loop(0, steps, [], step)


def _state_groups(f: Function, states: int, size: int, group: Callable[[Int, int], None]) -> None:
    """Call group(first, count) for the states in groups of `size`, a loop for the whole ones and once for the rest."""
    whole, rest = divmod(states, size)
    if whole == 1:
        group(f.number(0), size)
    elif whole > 1:

        def one(i: Int, _: list) -> list:
            group(i * size, size)
            return []

        f.loop(0, whole, [], one)
    if rest:
        group(f.number(whole * size), rest)


def _prefetch(f: Function, v: Variant, at: Place, names: tuple[str, ...], t: Int) -> None:
    """Ask for another chunk's rows while this one is computed: the hardware does not foresee this pattern."""
    for name in names:
        if v.gate or name not in ("z", "dz"):
            row(f, at, name, t).prefetch(write=name in WRITTEN)


def _blocked(f: Function, v: Variant, name: str, at: Place, first: Int) -> Pointer:
    return f.pointer(name) + (at.block * v.states + first) * f.target.lanes


def _checkpoint(f: Function, at: Place) -> Int:
    return (at.batch * f.index("chunks") + at.chunk) * f.index("blocks") + at.block


def _store(at: Pointer, vectors: list[Vec]) -> None:
    _store_each(at, vectors, at.f.target.lanes)


def _store_each(at: Pointer, vectors: list[Vec], stride: int) -> None:
    for n, vector in enumerate(vectors):
        (at + n * stride).store(vector)
