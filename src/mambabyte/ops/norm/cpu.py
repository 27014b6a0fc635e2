"""The norm on a CPU: prepares tensors for the kernels of `cpu_ir` and calls them.

Results do not depend on the number of threads, bit for bit, and a row's not on the other rows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mambabyte.ops.native import Kernel, threads_for
from mambabyte.ops.norm import cpu_ir
from mambabyte.ops.panels import sum_in_order
from mambabyte.ops.target import host_target
from mambabyte.ops.vector_values import BFLOAT, FLOAT

# Single-thread nanoseconds per element, to decide whether a second thread pays.
FORWARD_NANOSECONDS, BACKWARD_NANOSECONDS = 0.5, 1.0


def why_not(x: Tensor) -> str | None:
    """Why the kernels cannot serve this tensor, or None."""
    if x.dtype == torch.float64:
        return "the CPU kernels compute in float32, and the tensor is float64"
    return None


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
    """y in out_dtype, the stream, and the reciprocal deviation and mean (0 for "rms") of every row, all float32."""
    x = x.to(_row_dtype(x.dtype)).contiguous()
    y = torch.empty(x.shape, dtype=_row_dtype(out_dtype))
    stream = torch.empty(x.shape, dtype=torch.float32)
    rstd, mean = torch.empty(x.shape[:-1]), torch.empty(x.shape[:-1])
    rows = rstd.numel()
    kernel = _kernel(cpu_ir.forward, kind, x.shape[-1], eps, bias is not None, residual is not None, x.dtype, y.dtype)
    kernel(
        threads=threads_for(FORWARD_NANOSECONDS * x.numel(), _tasks(rows)), x=x, y=y, stream=stream, rstd=rstd,
        mean=mean, weight=_float(weight), bias=_float(bias), residual=_float(residual), rows=rows, tasks=_tasks(rows),
    )  # fmt: skip
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
    """Gradients of x + residual (float32), weight and bias (None for None)."""
    width, rows = stream.shape[-1], rstd.numel()
    dy = dy.to(_row_dtype(dy.dtype)).contiguous()
    dx = torch.empty_like(stream)
    sums = torch.zeros(2 if bias is not None else 1, _tasks(rows), width)
    kernel = _kernel(cpu_ir.backward, kind, width, 0.0, bias is not None, dstream is not None, torch.float32, dy.dtype)
    kernel(
        threads=threads_for(BACKWARD_NANOSECONDS * stream.numel(), _tasks(rows)), dy=dy, dstream=_float(dstream),
        stream=stream, weight=_float(weight), rstd=rstd, mean=mean, dx=dx, dweight=sums[0],
        dbias=None if bias is None else sums[1], rows=rows, tasks=_tasks(rows),
    )  # fmt: skip
    dbias = None if bias is None else sum_in_order(sums[1]).to(bias.dtype, copy=True)
    return dx, sum_in_order(sums[0]).to(weight.dtype, copy=True), dbias


def _tasks(rows: int) -> int:
    return -(-rows // cpu_ir.ROWS)


def _float(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.float().contiguous()


def _row_dtype(dtype: torch.dtype) -> torch.dtype:
    """What rows are read and written in: bfloat16 as it is, anything else widened to float32 first."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


@functools.cache
def _kernel(write, kind, width, eps, bias, carried, x, y) -> Kernel:  # type: ignore[no-untyped-def]
    elements = {torch.bfloat16: BFLOAT, torch.float32: FLOAT}
    return Kernel(write(host_target(), cpu_ir.Variant(kind, width, eps, bias, carried, elements[x], elements[y])))
