"""The causal convolution as one differentiable torch op; the kernel behind it is the module of the tensors' device."""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from mambabyte.ops.registration import kernel_op


def kernels(backend: str) -> ModuleType:
    """The module of a backend, "cpu" or "cuda": forward, backward, step, why_not."""
    return import_module(f"mambabyte.ops.causal_conv.{backend}")


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    *,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """y and the final state by the kernel of x's device; differentiable."""
    return _forward(x, weight, bias, initial_state, resets, activation)


@kernel_op("mambabyte::causal_conv")
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    return kernels(x.device.type).forward(x, weight, bias, initial_state, resets, activation=activation)


@_forward.register_fake
def _(x, weight, bias, initial_state, resets, activation):  # type: ignore[no-untyped-def]  # noqa: ARG001
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
) -> list[Tensor]:
    gradients = kernels(x.device.type).backward(
        dy, dfinal, x, weight, bias, initial_state, resets, activation=activation
    )
    return [g for g in gradients if g is not None]


@_backward.register_fake
def _(dy, dfinal, x, weight, bias, initial_state, resets, activation):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return [t.new_empty(t.shape) for t in (x, weight, bias, initial_state) if t is not None]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, activation = inputs
    ctx.save_for_backward(*tensors)
    ctx.activation = activation
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dfinal):  # type: ignore[no-untyped-def]
    *tensors, resets = ctx.saved_tensors
    if dy is None:  # only the final state is used
        dy = torch.zeros_like(tensors[0])
    present = iter(_backward(dy, dfinal, *tensors, resets, ctx.activation))
    return (*(None if t is None else next(present) for t in tensors), None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
