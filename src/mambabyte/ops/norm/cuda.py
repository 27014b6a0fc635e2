"""The norm on an NVIDIA GPU: CUDA C++ in kernels.cu, compiled at run time. Gradients are deterministic."""

from functools import lru_cache

import torch
from torch import Tensor

from mambabyte.ops import nvrtc

SOURCES = ("device.cuh", "norm/kernels.cu")
MAX_WIDTH = 16384
THREADS = 128
# Blocks that walk the rows in the backward: enough to fill large GPUs, few enough to keep the sums for dweight small.
BACKWARD_BLOCKS = 528


def why_not(x: Tensor) -> str | None:
    """A sentence why the CUDA kernels cannot run on x; None when they can."""
    if not 0 < x.shape[-1] <= MAX_WIDTH:
        return f"its kernels take rows of 1 to {MAX_WIDTH} elements, not {x.shape[-1]}"
    return nvrtc.why_not(x)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y in out_dtype, stream = x + residual in float32, and rstd and mean of every row of the stream."""
    written = _written(out_dtype)
    if x.dtype not in (written, torch.float32):
        x = x.float()
    x = nvrtc.quads(x)
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    y, stream = torch.empty_like(x, dtype=written), torch.empty_like(x, dtype=torch.float32)
    rstd = torch.empty(x.shape[:-1], device=x.device, dtype=torch.float32)
    mean = torch.empty_like(rstd)
    if rows == 0:
        return y.to(out_dtype), stream, rstd, mean
    kernel, rows_a_block = _kernel("norm_forward", width, written, kind, x.dtype == torch.float32, bias is not None)
    with torch.cuda.device(x.device):
        parameters = (nvrtc.floats(residual), nvrtc.floats(weight), nvrtc.floats(bias))
        kernel((-(-rows // rows_a_block),), _threads(width), x, *parameters, eps, y, stream, rstd, mean, rows)
    return y.to(out_dtype), stream, rstd, mean


def backward(
    dy: Tensor,
    dstream: Tensor | None,
    stream: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rstd: Tensor,
    mean: Tensor,
    *,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x + residual (float32), weight and bias."""
    dy = nvrtc.quads(dy.to(_written(dy.dtype)))
    width, rows = stream.shape[-1], stream.numel() // stream.shape[-1]
    dsum = torch.empty_like(stream)
    kernel, rows_a_block = _kernel("norm_backward", width, dy.dtype, kind, True, bias is not None)
    blocks = max(1, min(BACKWARD_BLOCKS, -(-rows // rows_a_block)))
    partial = stream.new_empty(blocks * rows_a_block, 2, width)
    with torch.cuda.device(stream.device):
        tensors = (dy, nvrtc.floats(dstream), stream, nvrtc.floats(weight), rstd, mean, dsum, partial)
        kernel((blocks,), _threads(width), *tensors, rows)
    dweight = partial[:, 0].sum(0).to(weight.dtype)
    return dsum, dweight, None if bias is None else partial[:, 1].sum(0).to(bias.dtype)


@lru_cache(maxsize=256)
def _kernel(
    name: str, width: int, dtype: torch.dtype, kind: str, x_floats: bool, bias: bool
) -> tuple[nvrtc.Kernel, int]:
    """The kernel and how many rows its blocks take at once."""
    warps = _warps_a_row(width)
    rows_a_block = _threads(width) // (32 * warps)
    kernel = nvrtc.get(
        SOURCES,
        name,
        IO=nvrtc.IO_CODES[dtype],
        X_FLOATS=int(x_floats),
        WIDTH=width,
        WARPS_A_ROW=warps,
        ROWS_A_BLOCK=rows_a_block,
        LAYER=int(kind == "layer"),
        BIAS=int(bias),
    )
    return kernel, rows_a_block


def _written(dtype: torch.dtype) -> torch.dtype:
    """What the kernels write where y is to be of this dtype: float32 for float64."""
    return dtype if dtype in nvrtc.IO_CODES else torch.float32


def _warps_a_row(width: int) -> int:
    """At most four quads a lane, so that a row lies in registers, up to the 16 warps of a large block."""
    warps = 1
    while warps < 16 and width > warps * 32 * 4 * 4:
        warps *= 2
    return warps


def _threads(width: int) -> int:
    return max(THREADS, 32 * _warps_a_row(width))
