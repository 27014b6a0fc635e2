"""The causal convolution's CPU kernels, written in the vocabulary of `mambabyte.ops.vector_ir`.

Work is cut as `mambabyte.ops.panels` describes. Time goes forward in both directions of differentiation: the last W - 1
inputs ride along in registers (zeroed by a reset), and backward also carries the gradients of those inputs, which later
positions still add to, so that every row is read and written once.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from mambabyte.ops.panels import CHUNK, COUNTS, Place, masked_or_not, row, walk
from mambabyte.ops.target import Target
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_math import fma, sigmoid
from mambabyte.ops.vector_values import BYTE, FLOAT, Element, Int, Pointer, Vec, arrays


@dataclass(frozen=True)
class Variant:
    """What a kernel is specialised on."""

    width: int
    element: Element
    silu: bool
    resets: bool


def forward(target: Target, v: Variant) -> Function:
    """Write the forward kernel: y, and in place of the W - 1 inputs before the first position the last W - 1."""
    pointers = {"x": v.element, "y": v.element, "weight": FLOAT, "bias": FLOAT, "past": FLOAT, "resets": BYTE}
    f = Function("conv_forward", target, pointers, [*COUNTS, "x_row"])

    def stage(at: Place, mask: ir.Value | None) -> None:
        weight, bias = _weights(f, v, at)
        past = _carried(f, v, at, "past")

        def step(t: Int, taps: list[Vec]) -> list[Vec]:
            row(f, at, "x", t + CHUNK).prefetch()
            row(f, at, "y", t + CHUNK).prefetch(write=True)
            if v.resets:
                taps = _zero_at_reset(f, at, t, taps)
            taps = [*taps, row(f, at, "x", t).load(mask)]
            y = _convolve(taps, weight, bias)
            if v.silu:
                y = y * sigmoid(y)
            row(f, at, "y", t).store(y, mask)
            return taps[1:]

        _store_all(past, f.loop(0, at.steps, [p.load() for p in past], step))

    walk(f, lambda at: masked_or_not(f, at, lambda mask: stage(at, mask)))
    return f


def backward(target: Target, v: Variant) -> Function:
    """Write the backward kernel.

    dx has the gradients of all inputs but the last W - 1, which are left in `pending`; those of the inputs before the
    first position go to dinitial. `visible` says with ones and zeros which of the last W - 1 inputs no reset has cut
    off. dweight and dbias are sums over time for each batch row, added to what is there.
    """
    floats = arrays(FLOAT, "weight", "bias", "past", "pending", "visible", "dweight", "dbias")
    pointers = {**arrays(v.element, "x", "dy", "dx", "dinitial"), **floats, "resets": BYTE}
    f = Function("conv_backward", target, pointers, [*COUNTS, "x_row", "dy_row"])
    before = v.width - 1

    def stage(at: Place, mask: ir.Value | None) -> None:
        weight, bias = _weights(f, v, at)
        carried = [p for name in ("past", "pending", "visible") for p in _carried(f, v, at, name)]
        lanes = f.target.lanes
        blocks_before = at.batch * f.index("blocks") + at.block
        sums = [f.pointer("dweight") + (blocks_before * v.width + w) * lanes for w in range(v.width)]
        sums.append(f.pointer("dbias") + blocks_before * lanes)

        def step(t: Int, carry: list[Vec]) -> list[Vec]:
            for name in ("x", "dy", "dx"):
                row(f, at, name, t + CHUNK).prefetch(write=name == "dx")
            taps, pending, visible = (carry[k * before : (k + 1) * before] for k in range(3))
            totals = carry[3 * before :]
            if v.resets:
                taps, visible = (_zero_at_reset(f, at, t, vectors) for vectors in (taps, visible))
            taps = [*taps, row(f, at, "x", t).load(mask)]
            slope = row(f, at, "dy", t).load(mask)
            if v.silu:
                y = _convolve(taps, weight, bias)
                open_ = sigmoid(y)
                slope = slope * (open_ * fma(y, 1.0 - open_, 1.0))
            totals = [fma(slope, tap, total) for tap, total in zip(taps, totals, strict=False)] + [totals[-1] + slope]
            seen = [slope * one for one in visible] if v.resets else [slope] * before
            pending = [fma(s, w.load(), p) for s, w, p in zip(seen, weight, pending, strict=False)]
            pending.append(slope * weight[-1].load())
            _input_row(f, v, at, t - before).store(pending[0], mask)
            visible = [*visible, f.vec(1.0)]
            return [*taps[1:], *pending[1:], *visible[1:], *totals]

        start = [p.load() for p in (*carried, *sums)]
        _store_all([*carried, *sums], f.loop(0, at.steps, start, step))

    walk(f, lambda at: masked_or_not(f, at, lambda mask: stage(at, mask)))
    return f


def step(target: Target, v: Variant) -> Function:
    """Write the single step: y of one position, and the state (batch, W - 1, channels) shifted by it in place."""
    pointers = {"state": v.element, "x": v.element, "y": v.element, "weight": FLOAT, "bias": FLOAT}
    f = Function("conv_step", target, pointers, ["channels", "blocks", "tasks"])
    channels, blocks = f.index("channels"), f.index("blocks")

    def task(number: Int) -> None:
        batch, channel = number // blocks, number % blocks * target.lanes
        left = channels - channel
        mask = f.mask_below(left)
        past = [f.pointer("state") + ((batch * (v.width - 1) + w) * channels + channel) for w in range(v.width - 1)]
        here = batch * channels + channel
        taps = [p.load(mask) for p in (*past, f.pointer("x") + here)]
        y = (f.pointer("bias") + channel).load(mask)
        for w, tap in enumerate(taps):
            y = fma(tap, (f.pointer("weight") + (channel * v.width + w)).gather(v.width, left), y)
        if v.silu:
            y = y * sigmoid(y)
        (f.pointer("y") + here).store(y, mask)
        for p, tap in zip(past, taps[1:], strict=True):
            p.store(tap, mask)

    f.for_each_task(f.index("tasks"), task)
    return f


def _weights(f: Function, v: Variant, at: Place) -> tuple[list[Pointer], Vec]:
    lanes = f.target.lanes
    weight = f.pointer("weight") + at.block * (v.width * lanes)
    return [weight + w * lanes for w in range(v.width)], (f.pointer("bias") + at.channel).load()


def _carried(f: Function, v: Variant, at: Place, name: str) -> list[Pointer]:
    """Where a (batch, W - 1, blocks * lanes) array holds the vectors of this block, oldest first."""
    size = f.index("blocks") * f.target.lanes
    return [f.pointer(name) + ((at.batch * (v.width - 1) + w) * size + at.channel) for w in range(v.width - 1)]


def _convolve(taps: list[Vec], weight: list[Pointer], bias: Vec) -> Vec:
    for tap, w in zip(taps, weight, strict=True):
        bias = fma(tap, w.load(), bias)
    return bias


def _zero_at_reset(f: Function, at: Place, t: Int, vectors: list[Vec]) -> list[Vec]:
    bit = (f.pointer("resets") + (at.row + t)).bit()
    return [f.select(bit, f.vec(0.0), vector) for vector in vectors]


def _input_row(f: Function, v: Variant, at: Place, t: Int) -> Pointer:
    """The gradient row of input t of this chunk, in dinitial where it lies before the first position."""
    position = at.chunk * CHUNK + t
    before = (at.batch * (v.width - 1) + (v.width - 1) + position) * f.index("channels") + at.channel
    return f.select(position.compare("<", 0), f.pointer("dinitial") + before, row(f, at, "dx", t))


def _store_all(pointers: list[Pointer], vectors: list[Vec]) -> None:
    for pointer, vector in zip(pointers, vectors, strict=True):
        pointer.store(vector)
