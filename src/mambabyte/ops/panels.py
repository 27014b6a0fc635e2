"""How CPU kernels cut (batch, length, channels) tensors into work, and the layouts of tensors that go with it.

A vector is one *block* of channels, as many as the target has lanes. Per-channel data is stored blocked,
(blocks, states, lanes), so that a vector is contiguous; rows of x, dt, z and their like are read as they are, under a
mask in the last block. A task is one batch row and one *panel* of neighbouring blocks. It goes through time in chunks,
and through the blocks of its panel inside each chunk, so that every visited row of memory is read in a stretch: one
block at a time would touch a new page for every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from llvmlite import ir
from torch import Tensor

from mambabyte.ops.target import host_target
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_values import Int, Pointer

# Positions in a chunk, and between checkpoints of the scan's state.
CHUNK = 16
# Blocks in a panel: with 16 lanes, stretches of 512 bytes.
PANEL = 8
# The integer arguments that `walk` and `row` need, besides `name_row` for tensors whose rows are further apart.
COUNTS = ("length", "channels", "blocks", "panel", "panels", "chunks", "tasks")


@dataclass(frozen=True)
class Place:
    """One chunk of one block. `row` is its first row among batch * length, `channel` the block's first channel."""

    batch: Int
    row: Int
    steps: Int
    chunk: Int
    block: Int
    channel: Int


def walk(
    f: Function,
    visit: Callable[[Place], None],
    *,
    reverse: bool = False,
    before: Callable[[], object] = lambda: None,
    after_chunk: Callable[[Int, Int, Int], None] | None = None,
) -> None:
    """Write the body of `f`: visit every block of a task's panel in every chunk, the last chunk first if `reverse`."""
    length, panel, panels = (f.index(name) for name in ("length", "panel", "panels"))

    def task(number: Int) -> None:
        batch, which = number // panels, number % panels
        first = which * panel
        last = (first + panel).minimum(f.index("blocks"))
        before()

        def chunk(c: Int, _: list) -> list:
            start = c * CHUNK
            steps = (length - start).minimum(CHUNK)
            row = batch * length + start

            def block(q: Int, _: list) -> list:
                visit(Place(batch=batch, row=row, steps=steps, chunk=c, block=q, channel=q * f.target.lanes))
                return []

            f.loop(first, last, [], block)
            if after_chunk is not None:
                after_chunk(which, row, steps)
            return []

        f.loop(0, f.index("chunks"), [], chunk, reverse=reverse)

    f.for_each_task(f.index("tasks"), task)


def masked_or_not(f: Function, at: Place, stage: Callable[[ir.Value | None], None]) -> None:
    """Write a stage twice: for a whole block, and under a mask for a last block that has fewer channels."""
    left = f.index("channels") - at.channel
    f.either(left.compare(">=", f.target.lanes), lambda: stage(None), lambda: stage(f.mask_below(left)))


def row(f: Function, at: Place, name: str, t: Int) -> Pointer:
    """Step t of this block in a (batch, length, channels) tensor with rows `name_row` (or channels) elements apart."""
    stride = f.index(f"{name}_row") if f"{name}_row" in f.integers else f.index("channels")
    return f.pointer(name) + ((at.row + t) * stride + at.channel)


def counts(batch: int, length: int, channels: int, panel: int) -> dict[str, int]:
    """The values of COUNTS for a tensor of this shape with so many blocks to a panel."""
    blocks = blocks_of(channels)
    panels = max(1, -(-blocks // panel))
    return {
        "length": length,
        "channels": channels,
        "blocks": blocks,
        "panel": panel,
        "panels": panels,
        "chunks": -(-length // CHUNK),
        "tasks": batch * panels,
    }


def panel_for(blocks: int, threads: int) -> int:
    """Blocks in a panel where the cut does not change results: wide for memory, yet two tasks for every thread."""
    return min(PANEL, max(1, blocks // (2 * threads)))


def blocks_of(channels: int) -> int:
    """How many blocks hold this many channels."""
    return -(-channels // host_target().lanes)


def rows(t: Tensor) -> Tensor:
    """The same tensor with all rows one stride apart and channels contiguous; a slice of wider rows stays itself."""
    batch, length, channels = t.shape
    as_rows = t.stride(2) == 1 or channels == 1
    one_stride = batch == 1 or t.stride(0) == length * t.stride(1)
    return t if as_rows and one_stride else t.contiguous()


def block(t: Tensor) -> Tensor:
    """(batch, channels, states) -> a float32 copy (batch, blocks, states, lanes), zero in lanes past the end."""
    batch, channels, states = t.shape
    lanes, blocks = host_target().lanes, blocks_of(channels)
    if channels == blocks * lanes:
        blocked = t.float().reshape(batch, blocks, lanes, states).transpose(2, 3)
        return blocked.clone(memory_format=torch.contiguous_format)  # contiguous() would be `t` itself with one state
    padded = torch.zeros(batch, blocks * lanes, states)
    padded[:, :channels] = t
    return padded.view(batch, blocks, lanes, states).transpose(2, 3).contiguous()


def unblock(t: Tensor, channels: int) -> Tensor:
    """The inverse of `block`, contiguous and not sharing memory with `t`."""
    batch, blocks, states, lanes = t.shape
    return (
        t.transpose(2, 3)
        .reshape(batch, blocks * lanes, states)[:, :channels]
        .clone(memory_format=torch.contiguous_format)
    )


def pad_channels(t: Tensor | None, channels: int, *batch: int) -> Tensor:
    """float32 (*batch, blocks * lanes): the last dimension filled with zeros to whole blocks; all zeros for None."""
    padded = torch.zeros(*batch, blocks_of(channels) * host_target().lanes)
    if t is not None:
        padded[..., :channels] = t
    return padded


def sum_in_order(partials: Tensor) -> Tensor:
    """Sum over the first dimension, one by one: torch's own sum may cut it up by the number of threads."""
    total = partials.new_zeros(partials.shape[1:])
    for part in partials:
        total += part
    return total
