"""What the decoding kernels are compiled for: the sizes of a model and how its work is cut."""

import dataclasses
import struct
from functools import cached_property

import torch

from mambabyte.ops import nvrtc

# As in parts.cuh.
SLICE, TILE, PARTS = 128, 8, 4
BLOCK_BYTES = SLICE * TILE * 2
SHARED = ("device.cuh", "decode/machine.cuh", "decode/parts.cuh")


def up(value: int, unit: int) -> int:
    """The least multiple of `unit` that is at least `value`."""
    return -(-value // unit) * unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The letters of a stack of equal Mamba layers, its norm, and the 16-bit type of its weights."""

    D: int
    E: int
    N: int
    R: int
    W: int
    V: int
    layers: int
    layer_norm: bool
    norm_bias: bool
    eps: float
    dtype: torch.dtype

    @property
    def D_pitch(self) -> int:
        """The width in whole slices."""
        return up(self.D, SLICE)

    @property
    def E_pitch(self) -> int:
        """The inner width in whole slices."""
        return up(self.E, SLICE)

    @property
    def N_pitch(self) -> int:
        """States as a power of two, which lanes share equally."""
        return max(PARTS, 1 << (self.N - 1).bit_length())

    @property
    def R_pitch(self) -> int:
        """Inputs of dt in equal parts of whole quads."""
        return up(self.R, 4 * PARTS)

    @property
    def select_pitch(self) -> int:
        """dt's inputs, B and C in whole tiles."""
        return max(self.select_tiles * TILE, self.R_pitch)

    @property
    def E_tiles(self) -> int:
        """Tiles of channels."""
        return -(-self.E // TILE)

    @property
    def D_tiles(self) -> int:
        """Tiles of the out-projection's outputs."""
        return -(-self.D // TILE)

    @property
    def select_tiles(self) -> int:
        """Tiles of the x-projection's outputs."""
        return -(-(self.R + 2 * self.N) // TILE)

    @property
    def V_tiles(self) -> int:
        """Tiles of the head's outputs."""
        return -(-self.V // TILE)

    @property
    def norm_size(self) -> int:
        """Floats of one norm: its scale and, if it has one, its bias."""
        return (1 + self.norm_bias) * self.D_pitch

    @property
    def channels_bytes(self) -> int:
        """Bytes of what a tile of channels brings along."""
        return TILE * (4 * (self.W + 3 + self.N_pitch) + 2 * self.R_pitch)

    @cached_property
    def defines(self) -> dict[str, int]:
        """The macros that parts.cuh needs."""
        letters = {name: getattr(self, name) for name in "DENRWV"}
        (eps,) = struct.unpack("<i", struct.pack("<f", self.eps))
        return letters | {
            "IO": nvrtc.IO_CODES[self.dtype],
            "LAYER": int(self.layer_norm),
            "BIAS": int(self.norm_bias),
            "EPS_BITS": eps,
        }
