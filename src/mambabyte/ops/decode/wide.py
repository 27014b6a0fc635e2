"""Many columns: the launches of wide.cu, six a layer, to be captured in a graph."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mambabyte.ops import nvrtc
from mambabyte.ops.decode.pack import Weights
from mambabyte.ops.decode.sizes import BLOCK_BYTES, SHARED, SLICE, TILE, Sizes, up

SOURCES = (*SHARED, "decode/wide.cu")
COLUMNS, TILES, WARPS, STAGES = 64, 8, 8, 3  # of a block of a product
SHARED_BYTES = STAGES * (TILES * BLOCK_BYTES + COLUMNS * (SLICE + 8) * 2) + 128
SELECT_COLUMNS, SELECT_WARPS = 16, 16
SCAN_ROWS, THREADS = 8, 256


class Launch(NamedTuple):
    """One kernel of `SOURCES` with its grid, threads, arguments and bytes of shared memory."""

    kernel: str
    grid: tuple[int, ...]
    threads: int
    arguments: tuple[Tensor | int | None, ...]
    shared: int = 0


class Wide:
    """The tensors of a read of exactly `columns` columns, and its launches.

    `batch` (4 columns + 2) int32 holds id, after, before, first and the number of rows (see wide.cu); the logits are
    (columns, outputs) float32.
    """

    def __init__(self, sizes: Sizes, columns: int, outputs: int, device: torch.device) -> None:
        rows = up(columns, COLUMNS)

        def zeros(pitch: int, dtype: torch.dtype = sizes.dtype) -> Tensor:
            return torch.zeros(rows, pitch, device=device, dtype=dtype)

        self.sizes, self.columns = sizes, columns
        self.normalised, self.xz = zeros(sizes.D_pitch), zeros(2 * sizes.E_tiles * TILE)
        self.u, self.y = zeros(sizes.E_pitch), zeros(sizes.E_pitch)
        self.selected, self.stream = zeros(sizes.select_pitch, torch.float32), zeros(sizes.D_pitch, torch.float32)
        self.logits = torch.zeros(columns, outputs, device=device)
        self.batch = torch.zeros(4 * columns + 2, dtype=torch.int32, device=device)

    def launches(self, weights: Weights, ssm: Tensor, conv: Tensor) -> Iterator[Launch]:
        """In order; ssm (slots, layers, E, N_pitch) and conv (slots, layers, E, W - 1) float32 are updated."""
        s, count = self.sizes, self.columns
        ids, after, before, first, rows = torch.split(self.batch, [count, count, count, count + 1, 1])
        warps, groups = THREADS // 32, -(-count // COLUMNS)

        def product(name: str, tiles: int, *arguments: Tensor | int | None) -> Launch:
            return Launch(name, (-(-tiles // TILES), groups), 32 * WARPS + 32, (*arguments, count), SHARED_BYTES)

        def norm(layer: int) -> Launch:
            table, picked = (weights.embedding, ids) if layer == 0 else (self.stream, None)
            grid = (-(-count // warps),)
            return Launch(
                "normalise_columns", grid, THREADS, (table, picked, weights.norms[layer], self.normalised, count)
            )

        for layer in range(s.layers):
            channels = weights.channels[layer]
            yield norm(layer)
            yield product("in_product", 2 * s.E_tiles, self.normalised, weights.in_[layer], self.xz)
            walk = (before, after, first, rows)
            slots = (conv[:, layer], conv.stride(0))
            yield Launch(
                "convolve_columns", (-(-s.E // THREADS), count), THREADS, (self.xz, channels, *slots, *walk, self.u)
            )
            yield Launch(
                "select_columns",
                (s.select_tiles, -(-count // SELECT_COLUMNS)),
                32 * SELECT_WARPS,
                (self.u, weights.select[layer], self.selected, count),
                s.E_pitch // SLICE * SELECT_COLUMNS * TILE * 4,
            )
            slots = (ssm[:, layer], ssm.stride(0))
            yield Launch(
                "scan_columns",
                (-(-s.E * 4 // THREADS), -(-count // SCAN_ROWS)),
                THREADS,
                (self.xz, self.u, self.selected, channels, *slots, *walk, self.y),
            )
            picked = ids if layer == 0 else None
            yield product("out_product", s.D_tiles, self.y, weights.out[layer], self.stream, weights.embedding, picked)
        yield norm(s.layers)
        yield product("head_product", s.V_tiles, self.normalised, weights.head, self.logits, self.logits.shape[1])

    def run(self, weights: Weights, ssm: Tensor, conv: Tensor) -> None:
        """Launch all on the current stream."""
        for launch in self.launches(weights, ssm, conv):
            kernel = nvrtc.get(SOURCES, launch.kernel, **self.sizes.defines)
            kernel(launch.grid, launch.threads, *launch.arguments, shared=launch.shared)
