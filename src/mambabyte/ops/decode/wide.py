"""Many columns: the launches of wide.cu and walks.cu, six a layer, to be captured in a graph."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambabyte.ops import nvrtc
from mambabyte.ops.decode.pack import Weights
from mambabyte.ops.decode.sizes import BLOCK_BYTES, PARTS, SHARED, SLICE, TILE, Sizes, up

SOURCES = (*SHARED, "decode/warpgroup.cuh", "decode/wide.cu", "decode/walks.cu")
GROUP, WARPS = 64, 4  # of a block of a product
# Of a block of a product its tiles of outputs, the largest first, and how many slices it has room for.
STAGES = {8: 3, 4: 4, 2: 8}
WARPGROUP_STAGES = {16: 4, 8: 6, 4: 8, 2: 8}
BLOCKS = 128  # as many as there are multiprocessors, or about so
SELECT_COLUMNS, SELECT_WARPS = 16, 16
WALK_THREADS, MOST_SCANNED = 128, 32  # of a block of a walk, and the scan's most columns


class Launch(NamedTuple):
    """One kernel of `SOURCES` with its grid, threads, arguments and bytes of shared memory."""

    kernel: str
    grid: tuple[int, ...]
    threads: int
    arguments: tuple[Tensor | int | None, ...]
    shared: int = 0


class Wide:
    """The tensors of a read of exactly `columns` columns, and its launches.

    `batch` (3 columns) int32 holds id, begin and after (see wide.cu); the logits are (columns, outputs) float32.
    `warpgroups` asks for the products of warpgroup.cuh, the same bits, of which only `nvrtc.WARPGROUPS` is capable.
    """

    def __init__(
        self, sizes: Sizes, columns: int, outputs: int, device: torch.device, *, warpgroups: bool = False
    ) -> None:
        rows = up(columns, GROUP)

        def zeros(pitch: int, dtype: torch.dtype = sizes.dtype) -> Tensor:
            return torch.zeros(rows, pitch, device=device, dtype=dtype)

        self.sizes, self.columns = sizes, columns
        self._stages = WARPGROUP_STAGES if warpgroups else STAGES
        tiles = {"IN": 2 * sizes.E_tiles, "OUT": sizes.D_tiles, "HEAD": sizes.V_tiles}
        self._conv_channels = 4 if sizes.E % 4 == 0 else 1  # of a thread
        self.conv_columns = 2 if columns > BLOCKS else 1
        # as few blocks as run at once
        self.scan_blocks = 4 if sizes.N_pitch <= 32 else 2
        scanned = -(-columns * -(-sizes.E * PARTS // WALK_THREADS) // (BLOCKS * self.scan_blocks))
        self.scan_columns = min(up(scanned, PARTS), MOST_SCANNED)
        names = ("conv_columns", "scan_columns", "scan_blocks")
        walks = {name.upper(): getattr(self, name) for name in names}
        self.defines = sizes.defines | walks | {f"{kind}_TILES": self._share(count) for kind, count in tiles.items()}
        # what the out-projection adds to takes registers too
        self.defines |= {"WGMMA": int(warpgroups), "OUT_TILES": min(8, self.defines["OUT_TILES"])}
        self.normalised, self.xz = zeros(sizes.D_pitch), zeros(2 * sizes.E_tiles * TILE)
        self.u, self.y = zeros(sizes.E_pitch), zeros(sizes.E_pitch)
        self.selected, self.stream = zeros(sizes.select_pitch, torch.float32), zeros(sizes.D_pitch, torch.float32)
        self.logits = torch.zeros(columns, outputs, device=device)
        self.batch = torch.zeros(3 * columns, dtype=torch.int32, device=device)

    @cached_property
    def shared(self) -> dict[str, int]:
        """Bytes of shared memory of a block, of the kernels that take any."""
        s = self.sizes
        quads = s.R_pitch // PARTS // 4 | 1  # of a part of dt's inputs, see DT_PITCH
        selected, states = self.scan_columns * (PARTS * quads * 4 + 2 * s.N_pitch) * 4, 2 * WALK_THREADS * s.N_pitch * 4
        shares = {kind: self.defines[f"{kind.upper()}_TILES"] for kind in ("in", "out", "head")}
        return {
            "convolve_columns": WALK_THREADS * self._conv_channels * (s.W - 1) * 4,
            "select_columns": s.E_pitch // SLICE * SELECT_COLUMNS * TILE * 4,
            "scan_columns": selected + states,
        } | {
            f"{kind}_product": self._stages[share] * (share * BLOCK_BYTES + GROUP * SLICE * 2) + 128
            for kind, share in shares.items()
        }

    def launches(self, weights: Weights, ssm: Tensor, conv: Tensor) -> Iterator[Launch]:
        """In order; ssm (slots, layers, E, N_pitch) and conv (slots, layers, E, W - 1) float32 are updated."""
        s, count = self.sizes, self.columns
        ids, begin, after = self.batch.view(3, count)
        logits = (self.logits, self.logits.shape[1])

        for layer in range(s.layers):
            channels, here = weights.channels[layer], ids if layer == 0 else None
            yield self._norm(weights, layer)
            yield self._product("in_product", "IN", 2 * s.E_tiles, self.normalised, weights.in_[layer], self.xz)
            yield self._convolve(self.xz, channels, conv[:, layer], conv.stride(0), begin, after, self.u)
            select = (self.u, weights.select[layer], self.selected, count)
            grid = (s.select_tiles, -(-count // SELECT_COLUMNS))
            yield Launch("select_columns", grid, 32 * SELECT_WARPS, select, self.shared["select_columns"])
            scan = (self.xz, self.u, self.selected, channels, ssm[:, layer], ssm.stride(0), begin, after, self.y)
            yield self._scan(*scan)
            out = (self.y, weights.out[layer], self.stream, weights.embedding, here)
            yield self._product("out_product", "OUT", s.D_tiles, *out)
        yield self._norm(weights, s.layers)
        yield self._product("head_product", "HEAD", s.V_tiles, self.normalised, weights.head, *logits)

    def _norm(self, weights: Weights, layer: int) -> Launch:
        table, ids = (weights.embedding, self.batch[: self.columns]) if layer == 0 else (self.stream, None)
        arguments = (table, ids, weights.norms[layer], self.normalised, self.columns)
        return Launch("normalise_columns", (-(-self.columns // 2),), 64, arguments)

    def _convolve(self, *arguments: Tensor | int) -> Launch:
        channels = self._conv_channels * WALK_THREADS
        grid = (-(-self.sizes.E // channels), -(-self.columns // self.conv_columns))
        shared = self.shared["convolve_columns"]
        return Launch("convolve_columns", grid, WALK_THREADS, (*arguments, self.columns), shared)

    def _scan(self, *arguments: Tensor | int) -> Launch:
        grid = (-(-self.sizes.E * PARTS // WALK_THREADS), -(-self.columns // self.scan_columns))
        return Launch("scan_columns", grid, WALK_THREADS, (*arguments, self.columns), self.shared["scan_columns"])

    def _product(self, name: str, kind: str, tiles: int, *arguments: Tensor | int | None) -> Launch:
        share = self.defines[f"{kind}_TILES"]
        grid = (-(-tiles // share), -(-self.columns // GROUP))
        return Launch(name, grid, 32 * WARPS + 32, (*arguments, self.columns), self.shared[name])

    def _share(self, tiles: int) -> int:
        """Tiles of a block: as many as leave a block for each multiprocessor, or about so."""
        groups = -(-self.columns // GROUP)
        return next((n for n in self._stages if -(-tiles // n) * groups >= BLOCKS), min(self._stages))

    def run(self, weights: Weights, ssm: Tensor, conv: Tensor) -> None:
        """Launch all on the current stream."""
        for launch in self.launches(weights, ssm, conv):
            kernel = nvrtc.get(SOURCES, launch.kernel, **self.defines)
            kernel(launch.grid, launch.threads, *launch.arguments, shared=launch.shared)


def begins(before: Sequence[int], after: Sequence[int]) -> NDArray[np.int32]:
    """Of each column, from its slots: the slot before it, or -1 where it goes on from the column beside it."""
    found, ends = np.array(before, np.int32), np.array(after, np.int32)
    found[1:][(found[1:] == ends[:-1]) & (found[1:] != ends[1:])] = -1
    return found
