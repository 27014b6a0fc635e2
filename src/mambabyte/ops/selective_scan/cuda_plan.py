"""How the CUDA kernels of the scan lay a problem on the GPU; sizes were tuned on an H200 (docs/kernels.md, GPU)."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property, lru_cache

# Rows between the states that the forward keeps for the backward: 2 bytes a position and channel at 16 states.
CHUNK = 32
# Channels of a lane, as in layout.cuh.
CHANNELS = 2
# Rows in registers in the backward; rows staged and rows in registers in the forward.
TILE = 4
FORWARD_TILE, BATCH = 16, 2
# What the backward's registers and shared memory allow; fewer warps than this and time is cut into segments.
WARPS_A_MULTIPROCESSOR = 8
MIN_SEGMENT_CHUNKS = 4
# Partial sums of dB and dC, float32 for each block of channels, that the backward may hold at once.
SCRATCH_BYTES = 1 << 30


def group(states: int) -> int:
    """Rows that the backward finishes together; with few states a lane has many quads of each, and 8 rows spill."""
    return 4 if states <= 8 else 8


def forward_blocks(*, floats: bool, resets: bool) -> int:
    """Blocks that a multiprocessor must hold in the forward: what its registers are bounded for."""
    return 3 if floats and resets else 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a problem is laid on the GPU: `warps` a block, time cut into `segments`."""

    batch: int
    length: int
    width: int
    states: int
    warps: int
    segment_rows: int

    @cached_property
    def padded_states(self) -> int:
        """The states, padded to a power of two."""
        return max(4, 1 << (self.states - 1).bit_length())

    @cached_property
    def warp_channels(self) -> int:
        """Channels that a warp walks."""
        return 32 // (self.padded_states // 4) * CHANNELS

    @cached_property
    def segments(self) -> int:
        """Stretches of time that are walked side by side."""
        return -(-self.length // self.segment_rows)

    @cached_property
    def blocks(self) -> int:
        """Blocks side by side over the channels."""
        return -(-self.width // (self.warp_channels * self.warps))

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Blocks: one for each segment of a sequence, and side by side over the channels."""
        return self.batch * self.segments, self.blocks

    @cached_property
    def shared_backward(self) -> int:
        """Bytes of `struct Shared` in backward.cu."""
        row, rows = CHANNELS * 32 + 4, group(self.states)
        starts = CHUNK // TILE * CHANNELS * 32 * 16
        steps, dy = CHUNK * (self.warp_channels + 2) * 8, rows * self.warp_channels * 4
        warp = starts + steps + dy + 3 * rows * row * 4 + CHUNK * 2 * self.padded_states * 4
        return self.warps * warp + CHUNK * self.padded_states * 8 + 16

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """Batch rows and stretches of time, the last first, that the backward takes one after another.

        One for all where the partial sums of dB and dC fit into SCRATCH_BYTES; a function of the shapes alone.
        """
        position = self.blocks * 2 * self.padded_states * 4
        rows = max(1, SCRATCH_BYTES // (position * self.length))
        stretch = max(1, SCRATCH_BYTES // (position * CHUNK)) * CHUNK
        for row in range(0, self.batch, rows):
            for start in reversed(range(0, self.length, stretch)):
                yield slice(row, row + rows), slice(start, start + stretch)


@lru_cache(maxsize=256)
def plan(batch: int, length: int, width: int, states: int, multiprocessors: int = 132) -> Plan:
    """One wave of warps where there is work enough; else as many segments of time as fill it."""
    padded = max(4, 1 << (states - 1).bit_length())
    warp_channels = 32 // (padded // 4) * CHANNELS
    warps_in_all = batch * -(-width // warp_channels)
    segments = max(1, multiprocessors * WARPS_A_MULTIPROCESSOR // warps_in_all)
    chunks = -(-length // CHUNK)
    return Plan(
        batch=batch,
        length=length,
        width=width,
        states=states,
        warps=min(4 if padded == 16 else 2, -(-width // warp_channels)),
        segment_rows=CHUNK * max(-(-chunks // segments), min(chunks, MIN_SEGMENT_CHUNKS)),
    )
