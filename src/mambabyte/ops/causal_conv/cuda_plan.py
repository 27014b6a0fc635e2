"""How the CUDA kernels of the convolution cut a problem into threads and blocks.

Sizes were tuned on an H200 for four taps in bfloat16 (docs/kernels.md, GPU).
"""

from typing import NamedTuple

import torch

from mambabyte.ops.nvrtc import IO_CODES

# Quads of channels side by side in a block and, forward, stretches of time; rows of a stretch.
LANES, SLICES, ROWS = 64, 4, 8
BACKWARD_LANES, READ = 128, 4  # READ: rows on their way from memory at once
STEP_LANES = 256
# Rows of a stretch of the backward; fewer are read twice in the longer, taken where they leave a GPU enough blocks.
BACKWARD_ROWS, LONG_BACKWARD_ROWS, ENOUGH_BLOCKS = 128, 256, 512


class Problem(NamedTuple):
    """What the kernels of a convolution are compiled for."""

    dtype: torch.dtype
    channels: int
    taps: int
    silu: bool
    resets: bool
    aligned: bool  # quads of channels are whole and on their own size

    def forward(self, row_stride: int) -> dict[str, int]:
        """The macros of forward.cu, for x of this row stride; a block is LANES * SLICES threads."""
        rows = ROWS // 2 if self.dtype == torch.float32 else ROWS  # of twice the registers
        # How many share the registers of a multiprocessor; what would spill has as many as it likes.
        blocks = 4 if self.taps == 4 and self.aligned else 1
        sizes = {"LANES": LANES, "SLICES": SLICES, "ROWS": rows, "MIN_BLOCKS": blocks}
        return self._shared() | sizes | {"X_ROW": row_stride}

    def backward(self, rows: int) -> dict[str, int]:
        """The macros of backward.cu, for stretches of so many rows; a block is LANES threads."""
        few = self.taps <= 4 and self.dtype != torch.float32
        blocks = (3 if self.resets else 4) if few else 1
        read = READ if self.taps <= 8 else READ // 4  # many taps take the registers
        return self._shared() | {"LANES": BACKWARD_LANES, "ROWS": rows, "READ": read, "MIN_BLOCKS": blocks}

    def step(self) -> dict[str, int]:
        """The macros of step.cu; a block is LANES threads."""
        return self._shared() | {"LANES": STEP_LANES}

    def _shared(self) -> dict[str, int]:
        flags = {"SILU": int(self.silu), "RESETS": int(self.resets), "ALIGNED": int(self.aligned)}
        return {"IO": IO_CODES[self.dtype], "WIDTH": self.taps, "CHANNELS": self.channels, **flags}


def columns(channels: int, lanes: int) -> int:
    """Blocks side by side in a row."""
    return -(-channels // (4 * lanes))


def forward_stretches(length: int, rows: int) -> int:
    """Stretches of a sequence with the one that writes the final state, in whole blocks."""
    return -(-(-(-length // rows) + 1) // SLICES) * SLICES


def backward_rows(batch: int, length: int, channels: int) -> int:
    """Rows of a stretch: a function of the shape alone, so that gradients are the same bits on every GPU."""
    blocks = batch * -(-length // LONG_BACKWARD_ROWS) * columns(channels, BACKWARD_LANES)
    return LONG_BACKWARD_ROWS if blocks >= ENOUGH_BLOCKS else BACKWARD_ROWS
