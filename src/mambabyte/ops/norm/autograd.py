"""The norm as one differentiable torch op; the kernel behind it is the module of a backend."""

from types import ModuleType

import torch
from torch import Tensor

from mambabyte.ops import backends
from mambabyte.ops.registration import kernel_op


def kernels(backend: str, x: Tensor) -> ModuleType:
    """The module of a backend that was chosen for x: forward, backward, why_not."""
    return backends.module("norm", backend, x.device, lambda module: module.why_not(x))


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y and the stream by the kernel of this backend; differentiable."""
    y, stream, _, _ = _forward(x, weight, bias, residual, eps, kind, out_dtype, backend)
    return y, stream


@kernel_op("mambabyte::norm")
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return kernels(backend, x).forward(x, weight, bias, residual, eps=eps, kind=kind, out_dtype=out_dtype)


@_forward.register_fake
def _(x, weight, bias, residual, eps, kind, out_dtype, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    rows = x.new_empty(x.shape[:-1], dtype=torch.float32)
    stream = x.new_empty(x.shape, dtype=torch.float32)
    return x.new_empty(x.shape, dtype=out_dtype), stream, rows, torch.empty_like(rows)


@kernel_op("mambabyte::norm_backward")
def _backward(
    dy: Tensor,
    dstream: Tensor | None,
    stream: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rstd: Tensor,
    mean: Tensor,
    kind: str,
    backend: str,
) -> list[Tensor]:
    gradients = kernels(backend, stream).backward(dy, dstream, stream, weight, bias, rstd, mean, kind=kind)
    return [g for g in gradients if g is not None]


@_backward.register_fake
def _(dy, dstream, stream, weight, bias, rstd, mean, kind, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return [t.new_empty(t.shape) for t in (stream, weight, bias) if t is not None]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, residual, _, ctx.kind, _, ctx.backend = inputs
    _, stream, rstd, mean = output
    ctx.save_for_backward(stream, weight, bias, rstd, mean)
    ctx.x_dtype, ctx.has_residual = x.dtype, residual is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dstream, *_):  # type: ignore[no-untyped-def]
    stream, weight, bias, rstd, mean = ctx.saved_tensors
    if dy is None:  # only the stream is used
        dy = torch.zeros_like(stream)
    gradients = _backward(dy, dstream, stream, weight, bias, rstd, mean, ctx.kind, ctx.backend)
    dsum, dweight, dbias = gradients if bias is not None else (*gradients, None)
    residual = dsum if ctx.has_residual else None
    return dsum.to(ctx.x_dtype), dweight, dbias, residual, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
