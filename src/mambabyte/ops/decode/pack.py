"""A model's weights as the decoding kernels read them."""

import dataclasses
import math

import torch
from torch import Tensor

from mambabyte.ops.decode.sizes import BLOCK_BYTES, SLICE, TILE, Sizes, up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Blocks of matrices [layer][tile][slice], bytes; what channels bring along; norms; embeddings, float32."""

    in_: Tensor  # (layers, 2 E_tiles, slices, BLOCK_BYTES) tiles of x and z alternate
    select: Tensor
    out: Tensor
    head: Tensor  # (V_tiles, slices, BLOCK_BYTES)
    channels: Tensor  # (layers, E_tiles, channels_bytes)
    norms: Tensor  # (layers + 1, norm_size)
    embedding: Tensor  # (V, D_pitch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One layer as its module holds it: matrices (outputs, inputs), A (E, N) negative, the rest by channel."""

    norm: Tensor
    norm_bias: Tensor | None
    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    out_proj: Tensor


def pack(
    sizes: Sizes,
    layers: list[LayerWeights],
    norm: Tensor,
    norm_bias: Tensor | None,
    embedding: Tensor,
    head: Tensor,
) -> Weights:
    """Copies of all weights in the kernels' layout, on their device."""
    norms = [(layer.norm, layer.norm_bias) for layer in layers] + [(norm, norm_bias)]
    return Weights(
        in_=torch.stack([_alternating(layer.in_proj, sizes) for layer in layers]),
        select=torch.stack([blocks(layer.x_proj, sizes.dtype) for layer in layers]),
        out=torch.stack([blocks(layer.out_proj, sizes.dtype) for layer in layers]),
        head=blocks(head, sizes.dtype),
        channels=torch.stack([_channels(layer, sizes) for layer in layers]),
        norms=torch.stack([_norm(weight, bias, sizes) for weight, bias in norms]),
        embedding=_padded(embedding.float(), sizes.V, sizes.D_pitch),
    )


def blocks(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs) -> (tiles, slices, BLOCK_BYTES) uint8, zero beyond the matrix.

    A block holds 8 outputs by 128 inputs, [8 inputs of 128][output][8 inputs]: the matrices of 8 rows of 16 bytes that
    ldmatrix and wgmma read, each on 128 bytes that lie together.
    """
    outputs, inputs = up(matrix.shape[0], TILE), up(matrix.shape[1], SLICE)
    tiles, slices = outputs // TILE, inputs // SLICE
    padded = _padded(matrix.to(dtype), outputs, inputs).view(tiles, TILE, slices, SLICE // 8, 8)
    return padded.permute(0, 2, 3, 1, 4).contiguous().view(torch.uint8).view(tiles, slices, BLOCK_BYTES)


def _alternating(in_proj: Tensor, sizes: Sizes) -> Tensor:
    x, z = (blocks(half, sizes.dtype) for half in torch.split(in_proj, sizes.E))
    return torch.stack([x, z], 1).flatten(0, 1)


def _channels(layer: LayerWeights, sizes: Sizes) -> Tensor:
    """(E_tiles, channels_bytes): the struct `Channels`."""
    rows, tiles = sizes.E_tiles * TILE, sizes.E_tiles
    tall = (layer.conv_weight, layer.conv_bias[:, None], layer.dt_bias[:, None], layer.D[:, None])
    wide = _padded(layer.A.float() * math.log2(math.e), rows, sizes.N_pitch)
    floats = [_padded(t.float(), rows, t.shape[1]).view(tiles, -1) for t in tall] + [wide.view(tiles, -1)]
    dt = _padded(layer.dt_proj.to(sizes.dtype), rows, sizes.R_pitch).view(tiles, -1)
    return torch.cat([torch.cat(floats, 1).view(torch.uint8), dt.view(torch.uint8)], 1)


def _norm(weight: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    rows = torch.stack([weight.float()] if bias is None else [weight.float(), bias.float()])
    return _padded(rows, len(rows), sizes.D_pitch).flatten()


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    padded = matrix.new_zeros(rows, columns)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
