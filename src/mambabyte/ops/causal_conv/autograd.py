"""The causal convolution as one differentiable torch op; the kernel behind it is the module of a backend."""

from types import ModuleType

import torch
from torch import Tensor

from mambabyte.ops import backends
from mambabyte.ops.registration import kernel_op


def kernels(backend: str, x: Tensor, weight: Tensor) -> ModuleType:
    """The module of a backend that was chosen for x and weight: forward, backward, step, why_not."""
    return backends.module("causal_conv", backend, x.device, lambda module: module.why_not(x, weight.shape[1]))


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    *,
    activation: str | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y and the final state by the kernel of this backend; differentiable."""
    return _forward(x, weight, bias, initial_state, resets, activation, backend)


@kernel_op("mambabyte::causal_conv")
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    activation: str | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return kernels(backend, x, weight).forward(x, weight, bias, initial_state, resets, activation=activation)


@_forward.register_fake
def _(x, weight, bias, initial_state, resets, activation, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    batch, _, channels = x.shape
    return x.new_empty(x.shape), x.new_empty((batch, weight.shape[1] - 1, channels))


@kernel_op("mambabyte::causal_conv_backward")
def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    activation: str | None,
    backend: str,
) -> list[Tensor]:
    gradients = kernels(backend, x, weight).backward(
        dy, dfinal, x, weight, bias, initial_state, resets, activation=activation
    )
    return [g for g in gradients if g is not None]


@_backward.register_fake
def _(dy, dfinal, x, weight, bias, initial_state, resets, activation, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return [t.new_empty(t.shape) for t in (x, weight, bias, initial_state) if t is not None]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dfinal):  # type: ignore[no-untyped-def]
    *tensors, resets = ctx.saved_tensors
    if dy is None:  # only the final state is used
        dy = torch.zeros_like(tensors[0])
    present = iter(_backward(dy, dfinal, *tensors, resets, ctx.activation, ctx.backend))
    return (*(None if t is None else next(present) for t in tensors), None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
