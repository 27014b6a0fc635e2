"""The norm in Triton: the portable route to a GPU. Gradients are deterministic."""

import torch
from torch import Tensor

from mambabyte.ops import triton_support
from mambabyte.ops.triton_support import floats

MAX_WIDTH = 16384
# Programs of the backward a multiprocessor: each leaves a share of dweight.
PROGRAMS = 4


def why_not(x: Tensor) -> str | None:
    """A sentence why the Triton kernels cannot run on x; None when they can."""
    if not 0 < x.shape[-1] <= MAX_WIDTH:
        return f"its kernels take rows of 1 to {MAX_WIDTH} elements, not {x.shape[-1]}"
    return triton_support.why_not(x)


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
    from mambabyte.ops.norm import triton_kernels

    x = x.contiguous()
    y, stream = torch.empty_like(x, dtype=out_dtype), torch.empty_like(x, dtype=torch.float32)
    rstd = torch.empty(x.shape[:-1], device=x.device, dtype=torch.float32)
    mean = torch.empty_like(rstd)
    if x.numel() == 0:
        return y, stream, rstd, mean
    parameters = (None if t is None else floats(t) for t in (weight, bias, residual))
    with triton_support.on(x.device):
        triton_kernels.forward[(rstd.numel(),)](
            *(x, *parameters, eps, y, stream, rstd, mean, x.shape[-1]), **_options(x.shape[-1], kind)
        )
    return y, stream, rstd, mean


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
    from mambabyte.ops.norm import triton_kernels

    width, count = stream.shape[-1], rstd.numel()
    dsum = torch.empty_like(stream)
    programs = min(count, PROGRAMS * triton_support.multiprocessors(stream.device))
    partial = stream.new_empty(programs, 2, width)
    if programs:
        tensors = (dy.contiguous(), None if dstream is None else floats(dstream), stream, floats(weight), rstd, mean)
        with triton_support.on(stream.device):
            triton_kernels.backward[(programs,)](*tensors, dsum, partial, count, width, **_options(width, kind))
    dweight, dbias = partial.sum(0).unbind(0)
    return dsum, dweight.to(weight.dtype, copy=True), None if bias is None else dbias.to(bias.dtype, copy=True)


def _options(width: int, kind: str) -> dict[str, int]:
    block = 1 << (width - 1).bit_length()
    return {"BLOCK": block, "LAYER": kind == "layer", "num_warps": min(16, max(1, block // 512))}
