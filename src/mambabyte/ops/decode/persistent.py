"""Few columns in one launch: cutting the work among blocks, and the arguments of persistent.cu (see share.cuh)."""

import ctypes
import dataclasses
from array import array
from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from mambabyte.ops.decode.pack import Weights
from mambabyte.ops.decode.sizes import BLOCK_BYTES, SHARED, SLICE, TILE, Sizes, up

SOURCES = (*SHARED, "decode/share.cuh", "decode/persistent.cu")
KERNEL = "read_columns"
WARPS = 16
THREADS = 32 * (WARPS + 1)
CAPACITIES = (1, 8)  # columns of a launch
MOST_STAGES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How `blocks` thread blocks share the work: the most tiles of each, and of which kind."""

    sizes: Sizes
    blocks: int
    columns: int
    shared_limit: int

    @classmethod
    def of(cls, sizes: Sizes, multiprocessors: int, shared_limit: int, *, columns: int) -> "Cut":
        """Equal shares of the channels for at most that many blocks."""
        most = -(-sizes.E_tiles // multiprocessors)
        return cls(sizes=sizes, blocks=-(-sizes.E_tiles // most), columns=columns, shared_limit=shared_limit)

    def share(self, tiles: int) -> int:
        """The most tiles of a block."""
        return -(-tiles // self.blocks)

    @property
    def fits(self) -> bool:
        """Whether a block's threads and shared memory suffice."""
        channels, outputs = self.share(self.sizes.E_tiles) * TILE, self.share(self.sizes.D_tiles) * TILE
        return self.stages >= 2 and self.columns * max(channels, outputs) <= 32 * WARPS

    @property
    def stages(self) -> int:
        """Of the ring of weights."""
        return min(MOST_STAGES, (self.shared_limit - self._shared_without_ring) // (WARPS * BLOCK_BYTES))

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return up(self._shared_without_ring + self.stages * WARPS * BLOCK_BYTES, 128)

    @cached_property
    def _shared_without_ring(self) -> int:
        s, columns, channels = self.sizes, self.columns, self.share(self.sizes.E_tiles)
        D_slices, E_slices = s.D_pitch // SLICE, s.E_pitch // SLICE
        sums = max(
            max(2 * channels, self.share(s.V_tiles)) * D_slices,
            max(self.share(s.select_tiles), self.share(s.D_tiles)) * E_slices,
        )
        regions = (
            (2 * MOST_STAGES + 4) * 8,
            2 * channels * s.channels_bytes,
            2 * s.norm_size * 4,
            columns * (s.D_pitch + 8) * 2,
            (sums * TILE + 2 * D_slices) * columns * 4,
            4 * columns * channels * TILE * 4,
            columns * s.select_pitch * 4,
        )
        return 128 + sum(up(region, 16) for region in regions)

    @cached_property
    def defines(self) -> dict[str, int]:
        """The macros of share.cuh."""
        s = self.sizes
        return s.defines | {
            "COLUMNS": self.columns,
            "STAGES": self.stages,
            "CHANNEL_TILES": self.share(s.E_tiles),
            "OUT_TILES": self.share(s.D_tiles),
            "SELECT_OWN": self.share(s.select_tiles),
            "HEAD_TILES": self.share(s.V_tiles),
            "SHARED_BYTES": self.shared,
        }


class Model(ctypes.Structure):
    """The struct `Model` of share.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("in_", "select", "out", "head", "channels", "norms", "embedding")),
        *((name, ctypes.c_void_p) for name in ("ssm", "conv", "u", "y", "selected", "stream", "logits")),
        ("layers", ctypes.c_int),
        ("outputs", ctypes.c_int),
    )


@lru_cache(maxsize=8)
def batch_type(columns: int) -> type[ctypes.Structure]:
    """The struct `Batch` of share.cuh for so many columns."""
    names = ("id", "after", "begin", "place")
    fields = [("columns", ctypes.c_int), ("rows", ctypes.c_int), *((name, ctypes.c_int * columns) for name in names)]
    return type("Batch", (ctypes.Structure,), {"_fields_": (*fields, ("first", ctypes.c_int * (columns + 1)))})


def batch(ids: Sequence[int], before: Sequence[int], after: Sequence[int], *, capacity: int) -> ctypes.Structure:
    """The columns of a launch: their ids and the slots before and after them.

    Those of a sequence are neighbours, each from the slot that the one before it went to; a column that starts and ends
    in the same slot is alone.
    """
    count, first = len(ids), 0
    begin, place, firsts = list(before), [0] * capacity, []
    for i, (here, there) in enumerate(zip(before, after, strict=True)):
        if i == 0 or here != after[i - 1] or here == there:
            first = i
            firsts.append(i)
        begin[i], place[i] = before[first], i - first
    unused = [0] * (capacity - count)
    fields = [count, len(firsts), *ids, *unused, *after, *unused, *begin, *unused, *place]
    fields += [*firsts, count, *[0] * (capacity - len(firsts))]
    return batch_type(capacity).from_buffer(array("i", fields))


class Mail:
    """What blocks send each other, and the tags that have been used."""

    def __init__(self, sizes: Sizes, columns: int, device: torch.device) -> None:
        def zeros(pitch: int, rows: int = columns) -> Tensor:
            return torch.zeros(rows, pitch, device=device, dtype=torch.int64)

        self.u, self.y = zeros(sizes.E_pitch // 2, up(columns, 8)), zeros(sizes.E_pitch // 2, up(columns, 8))
        self.selected, self.stream = zeros(sizes.select_pitch), zeros(sizes.D_pitch)
        self._layers, self._used = sizes.layers, 1

    def next_tag(self) -> int:
        """The first tag of a launch, which has one for each layer. They never wrap around to those of old mail."""
        if self._used + self._layers > 2**32:
            for mail in (self.u, self.y, self.selected, self.stream):
                mail.zero_()
            self._used = 1
        tag, self._used = self._used, self._used + self._layers
        return tag


def model(weights: Weights, mail: Mail, ssm: Tensor, conv: Tensor, logits: Tensor, layers: int) -> Model:
    """The arguments that stay the same while no tensor moves; logits (columns, outputs) float32."""
    tensors = {field.name: getattr(weights, field.name) for field in dataclasses.fields(weights)}
    tensors |= {"ssm": ssm, "conv": conv, "logits": logits}
    tensors |= {name: getattr(mail, name) for name in ("u", "y", "selected", "stream")}
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    return Model(layers=layers, outputs=logits.shape[1], **pointers)
