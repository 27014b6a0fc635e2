"""The mixer as one differentiable torch op on a GPU, opaque to torch.compile through torch.library."""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from mambabyte.ops.registration import kernel_op
from mambabyte.ops.selective_scan.autograd import kernels as scan_kernels


def kernels(backend: str) -> ModuleType:
    """The module of a backend: forward, backward, why_not."""
    return import_module(f"mambabyte.ops.mixer.{backend}")


def mixer(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    out_proj: Tensor,
    conv_state: Tensor | None,
    state: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output and final states by the kernels of xz's device; differentiable."""
    tensors = (xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj, conv_state, state)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, conv_last, last, _, _ = _forward(*tensors, resets, keep)
    return out, conv_last, last


@kernel_op("mambabyte::mixer")
def _forward(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    out_proj: Tensor,
    conv_state: Tensor | None,
    state: Tensor | None,
    resets: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    module = kernels(xz.device.type)
    weights = module.Weights(conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj)
    return module.forward(xz, weights, module.States(conv_state, state, resets), keep=keep)


@_forward.register_fake
def _(xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj, conv_state, state, resets, keep):  # type: ignore[no-untyped-def]  # noqa: ARG001
    (batch, length, _), (channels, states) = xz.shape, A.shape
    shape = scan_kernels(xz.device.type).checkpoint_shape(batch, length, channels, states) if keep else (0,)
    return (
        xz.new_empty((batch, length, out_proj.shape[0])),
        xz.new_empty((batch, conv_weight.shape[1] - 1, channels)),
        xz.new_empty((batch, channels, states), dtype=torch.float32),
        xz.new_empty((batch, length, x_proj.shape[0])),
        xz.new_empty(shape, dtype=torch.float32),
    )


@kernel_op("mambabyte::mixer_backward")
def _backward(
    dout: Tensor,
    dconv_last: Tensor | None,
    dlast: Tensor | None,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    out_proj: Tensor,
    conv_state: Tensor | None,
    state: Tensor | None,
    resets: Tensor | None,
    selected: Tensor,
    checkpoints: Tensor,
) -> list[Tensor]:
    module = kernels(xz.device.type)
    weights = module.Weights(conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj)
    states = module.States(conv_state, state, resets)
    gradients = module.backward(dout, dconv_last, dlast, xz, weights, states, selected, checkpoints)
    return [g for g in gradients if g is not None]


@_backward.register_fake
def _(dout, dconv_last, dlast, xz, *rest):  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, _, _, _ = rest
    return [t.new_empty(t.shape) for t in (xz, *tensors) if t is not None]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, keep = inputs
    assert keep, "the mixer was run without checkpoints although a gradient is asked for"
    ctx.save_for_backward(*tensors, *output[3:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dout, dconv_last, dlast, *_):  # type: ignore[no-untyped-def]
    *tensors, resets, selected, checkpoints = ctx.saved_tensors
    if dout is None:  # only the final states are used
        xz, out_proj = tensors[0], tensors[8]
        dout = xz.new_zeros((*xz.shape[:2], out_proj.shape[0]))
    present = iter(_backward(dout, dconv_last, dlast, *tensors, resets, selected, checkpoints))
    return (*(None if t is None else next(present) for t in tensors), None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
