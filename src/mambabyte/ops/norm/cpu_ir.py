"""The norm's CPU kernels, written in the vocabulary of `mambabyte.ops.vector_ir`.

A task is `ROWS` rows; a row goes through the registers once to be summed and once, from the first-level cache, to be
written. Statistics are per row, so lanes hold neighbouring channels of one row and are added up at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from mambabyte.ops.target import Target
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_math import fma, square_root, total
from mambabyte.ops.vector_values import FLOAT, Element, Int, Vec

ROWS = 64


@dataclass(frozen=True)
class Variant:
    """What a kernel is specialised on; `carried` says whether there is a residual (forward) or its gradient."""

    kind: str
    width: int
    eps: float
    bias: bool
    carried: bool
    x: Element
    y: Element


# (first channel of a vector, mask of its channels or None, carried sums) -> carried sums
Body = Callable[[Int, "ir.Value | None", list[Vec]], list[Vec]]


def forward(target: Target, v: Variant) -> Function:
    """Write the forward kernel: stream, y, and the mean and reciprocal deviation of every row."""
    floats = dict.fromkeys(("residual", "weight", "bias", "stream", "rstd", "mean"), FLOAT)
    f = Function("norm_forward", target, {"x": v.x, "y": v.y, **floats}, ["rows", "tasks"])

    def row(r: Int) -> None:
        start = r * v.width
        zero = f.vec(0.0)

        def add(c: Int, mask: ir.Value | None, sums: list[Vec]) -> list[Vec]:
            s = (f.pointer("x") + (start + c)).load(mask)
            if v.carried:
                s = s + (f.pointer("residual") + (start + c)).load(mask)
            (f.pointer("stream") + (start + c)).store(s, mask)
            return [sums[0] + s] if v.kind == "layer" else [fma(s, s, sums[0])]

        (sum_,) = _over(f, v, [zero], add)
        mean = total(sum_) * (1 / v.width) if v.kind == "layer" else zero

        def deviate(c: Int, mask: ir.Value | None, sums: list[Vec]) -> list[Vec]:
            d = (f.pointer("stream") + (start + c)).load(mask) - mean
            if mask is not None:
                d = f.select(mask, d, zero)
            return [fma(d, d, sums[0])]

        squares = _over(f, v, [zero], deviate)[0] if v.kind == "layer" else sum_
        rstd = 1.0 / square_root(total(squares) * (1 / v.width) + v.eps)

        def write(c: Int, mask: ir.Value | None, sums: list[Vec]) -> list[Vec]:
            normal = ((f.pointer("stream") + (start + c)).load(mask) - mean) * rstd
            weight = (f.pointer("weight") + c).load(mask)
            y = fma(normal, weight, (f.pointer("bias") + c).load(mask)) if v.bias else normal * weight
            (f.pointer("y") + (start + c)).store(y, mask)
            return sums

        _over(f, v, [], write)
        first = f.mask_below(f.number(1))
        (f.pointer("rstd") + r).store(rstd, first)
        (f.pointer("mean") + r).store(mean, first)

    _for_each_row(f, row)
    return f


def backward(target: Target, v: Variant) -> Function:
    """Write the backward kernel: the gradient of the stream, and of weight and bias summed over each task's rows.

    With n the normalised row and g = dy weight: dx = rstd (g - n mean(g n) - mean(g)) + dstream, the last mean of
    LayerNorm alone.
    """
    floats = dict.fromkeys(("dstream", "stream", "weight", "rstd", "mean", "dx", "dweight", "dbias"), FLOAT)
    f = Function("norm_backward", target, {"dy": v.y, **floats}, ["rows", "tasks"])

    def row(r: Int) -> None:
        start, sums_at = r * v.width, r // ROWS * v.width
        rstd, mean = (f.pointer("rstd") + r).splat(), (f.pointer("mean") + r).splat()

        def read(c: Int, mask: ir.Value | None) -> tuple[Vec, Vec, Vec]:
            dy = (f.pointer("dy") + (start + c)).load(mask)
            normal = ((f.pointer("stream") + (start + c)).load(mask) - mean) * rstd
            return dy, normal, dy * (f.pointer("weight") + c).load(mask)

        def add(c: Int, mask: ir.Value | None, sums: list[Vec]) -> list[Vec]:
            dy, normal, g = read(c, mask)
            dweight = f.pointer("dweight") + (sums_at + c)
            dweight.store(fma(dy, normal, dweight.load(mask)), mask)
            if v.bias:
                dbias = f.pointer("dbias") + (sums_at + c)
                dbias.store(dbias.load(mask) + dy, mask)
            return [fma(g, normal, sums[0]), sums[1] + g]

        along, across = (total(s) * (1 / v.width) for s in _over(f, v, [f.vec(0.0), f.vec(0.0)], add))

        def write(c: Int, mask: ir.Value | None, sums: list[Vec]) -> list[Vec]:
            _, normal, g = read(c, mask)
            slope = fma(-along, normal, g)
            dx = (slope - across if v.kind == "layer" else slope) * rstd
            if v.carried:
                dx = dx + (f.pointer("dstream") + (start + c)).load(mask)
            (f.pointer("dx") + (start + c)).store(dx, mask)
            return sums

        _over(f, v, [], write)

    _for_each_row(f, row)
    return f


def _for_each_row(f: Function, row: Callable[[Int], None]) -> None:
    def one(r: Int, _: list) -> list:
        row(r)
        return []

    def task(number: Int) -> None:
        first = number * ROWS
        f.loop(first, (first + ROWS).minimum(f.index("rows")), [], one)

    f.for_each_task(f.index("tasks"), task)


def _over(f: Function, v: Variant, sums: list[Vec], body: Body) -> list[Vec]:
    """Run `body` over the vectors of a row, the last one under a mask if the width does not fill it."""
    lanes = f.target.lanes
    whole, left = divmod(v.width, lanes)
    sums = f.loop(0, whole, sums, lambda i, carry: body(i * lanes, None, carry))
    return body(f.number(whole * lanes), f.mask_below(f.number(left)), sums) if left else sums
