"""The selective scan's single step on a CPU.

The public state is (batch, channels, states) with states contiguous, and a step reads it once. So a vector here holds
the states of one channel, and one transposing sum turns the products C h of a block of channels into their y.
"""

from __future__ import annotations

from mambabyte.ops.selective_scan.cpu_ir import Variant
from mambabyte.ops.target import Target
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_math import LOG2E, exp2, fma, sigmoid, softplus_and_slope, sums
from mambabyte.ops.vector_values import FLOAT, Int, Vec, arrays


def step(target: Target, v: Variant) -> Function:
    """Write the step kernel; a task is one block of channels of one batch row, and the state is updated in place."""
    pointers = arrays(v.element, "x", "dt", "z", "y") | arrays(FLOAT, "state", "A", "B", "C", "D", "bias")
    f = Function("scan_step", target, pointers, ["channels", "blocks", "tasks"])
    lanes = target.lanes
    deltas, us, products = f.scratch(1), f.scratch(1), f.scratch(lanes)
    channels, blocks = f.index("channels"), f.index("blocks")

    def task(number: Int) -> None:
        batch, channel = number // blocks, number % blocks * lanes
        left = channels - channel
        mask = f.mask_below(left)

        def row(name: str) -> Vec:
            return (f.pointer(name) + (batch * channels + channel)).load(mask)

        x = row("x")
        delta = row("dt") + (f.pointer("bias") + channel).load(mask)
        if v.softplus:
            delta, _ = softplus_and_slope(delta)
        deltas.store(delta * LOG2E)
        us.store(delta * x)

        def one_channel(j: Int, _: list) -> list:
            decay_rate, u = (deltas + j).splat(), (us + j).splat()
            A = f.pointer("A") + (channel + j) * v.states
            state = f.pointer("state") + (batch * channels + channel + j) * v.states
            B, C = (f.pointer(name) + batch * v.states for name in "BC")
            product = f.vec(0.0)
            for n in range(0, v.states, lanes):
                some = None if v.states - n >= lanes else f.mask_below(f.number(v.states - n))
                h = fma(exp2(decay_rate * (A + n).load(some)), (state + n).load(some), u * (B + n).load(some))
                (state + n).store(h, some)
                product = fma(h, (C + n).load(some), product)
            (products + j * lanes).store(product)
            return []

        f.loop(0, left.minimum(lanes), [], one_channel)
        # channels past the last were not written: what is summed for them is masked away
        y = sums([(products + j * lanes).load() for j in range(lanes)])
        y = fma(x, (f.pointer("D") + channel).load(mask), y)
        if v.gate:
            z = row("z")
            y = y * (z * sigmoid(z))
        (f.pointer("y") + (batch * channels + channel)).store(y, mask)

    f.for_each_task(f.index("tasks"), task)
    return f
