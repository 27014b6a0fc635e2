"""The mixer as one differentiable torch op on a GPU, opaque to torch.compile through torch.library."""

import torch
from torch import Tensor

from mambabyte.ops import backends
from mambabyte.ops.autocast import without_autocast
from mambabyte.ops.mixer import fused
from mambabyte.ops.registration import keeps, kernel_op


def kernels(backend: str, xz: Tensor, states: int, width: int) -> fused.Kernels:
    """The kernels of a backend that was chosen for xz with so many states and taps."""
    return backends.module("mixer", backend, xz.device, lambda module: module.why_not(xz, states, width)).kernels


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
    *,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output and final states by the kernels of this backend; differentiable."""
    tensors = (xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj, conv_state, state)
    keep = keeps(*tensors)
    out, conv_last, last, _, _ = _forward(*tensors, resets, keep, backend)
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = fused.Weights(conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj)
    states = fused.States(conv_state, state, resets)
    return fused.forward(kernels(backend, xz, A.shape[1], conv_weight.shape[1]), xz, weights, states, keep=keep)


@_forward.register_fake
def _(xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj, conv_state, state, resets, keep, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    (batch, length, _), (channels, states) = xz.shape, A.shape
    width = conv_weight.shape[1]
    scan = kernels(backend, xz, states, width).scan
    shape = scan.checkpoint_shape(batch, length, channels, states) if keep else (0,)
    return (
        xz.new_empty((batch, length, out_proj.shape[0])),
        xz.new_empty((batch, width - 1, channels)),
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
    backend: str,
) -> list[Tensor]:
    weights = fused.Weights(conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj)
    states = fused.States(conv_state, state, resets)
    chosen = kernels(backend, xz, A.shape[1], conv_weight.shape[1])
    gradients = fused.backward(chosen, dout, dconv_last, dlast, xz, weights, states, selected, checkpoints)
    return [g for g in gradients if g is not None]


@_backward.register_fake
def _(dout, dconv_last, dlast, xz, *rest):  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, _, _, _, _ = rest
    return [t.new_empty(t.shape) for t in (xz, *tensors) if t is not None]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, keep, ctx.backend = inputs
    assert keep, "the mixer was run without checkpoints although a gradient is asked for"
    ctx.save_for_backward(*tensors, *output[3:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dout, dconv_last, dlast, *_):  # type: ignore[no-untyped-def]
    *tensors, resets, selected, checkpoints = ctx.saved_tensors
    if dout is None:  # only the final states are used
        xz, out_proj = tensors[0], tensors[8]
        dout = xz.new_zeros((*xz.shape[:2], out_proj.shape[0]))
    with without_autocast(dout.device):
        present = iter(_backward(dout, dconv_last, dlast, *tensors, resets, selected, checkpoints, ctx.backend))
    return (*(None if t is None else next(present) for t in tensors), None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
