"""The cross-entropy as one differentiable torch op; the kernel behind it is the module of a backend."""

from types import ModuleType

import torch
from torch import Tensor

from mambabyte.ops import backends
from mambabyte.ops.registration import kernel_op


def kernels(backend: str, logits: Tensor) -> ModuleType:
    """The module of a backend that was chosen for the logits: forward, backward, why_not."""
    return backends.module("cross_entropy", backend, logits.device, lambda module: module.why_not(logits))


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int, backend: str) -> Tensor:
    """The summed loss by the kernel of this backend; differentiable."""
    losses, _ = _forward(logits, targets, ignore_index, backend)
    return losses.sum()


@kernel_op("mambabyte::cross_entropy")
def _forward(logits: Tensor, targets: Tensor, ignore_index: int, backend: str) -> tuple[Tensor, Tensor]:
    """The loss of every row and the logarithm of its partition sum, float32."""
    return kernels(backend, logits).forward(logits, targets, ignore_index=ignore_index)


@_forward.register_fake
def _(logits, targets, ignore_index, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    losses = logits.new_empty(targets.shape, dtype=torch.float32)
    return losses, torch.empty_like(losses)


@kernel_op("mambabyte::cross_entropy_backward")
def _backward(
    dlosses: Tensor, logits: Tensor, targets: Tensor, log_sums: Tensor, ignore_index: int, backend: str
) -> Tensor:
    return kernels(backend, logits).backward(dlosses, logits, targets, log_sums, ignore_index=ignore_index)


@_backward.register_fake
def _(dlosses, logits, targets, log_sums, ignore_index, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return logits.new_empty(logits.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    logits, targets, ctx.ignore_index, ctx.backend = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, dlosses, _):  # type: ignore[no-untyped-def]
    return _backward(dlosses, *ctx.saved_tensors, ctx.ignore_index, ctx.backend), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
