"""The selective scan as one differentiable torch op; the kernel behind it is the module of a backend.

Registered with torch.library so that torch.compile sees an opaque node instead of breaking the graph.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops import backends
from mambabyte.ops.registration import keeps, kernel_op


def kernels(backend: str, x: Tensor, states: int) -> ModuleType:
    """The module of a backend that was chosen for x: forward, backward, step, checkpoint_shape, why_not."""
    return backends.module("selective_scan", backend, x.device, lambda module: module.why_not(x, states))


def gradients(
    chosen: ModuleType, dy: Tensor, dfinal: Tensor | None, x: Tensor, *inputs: Tensor | None, **options: Any
) -> tuple[Tensor | None, ...]:
    """Those of x, dt, A, B, C, D, z, dt_bias and the initial state, by the kernels of a backend; None for None.

    `inputs` are dt, ..., the resets and the checkpoints, `options` those of the backend's `backward`. Where there is
    nothing to scan no kernel runs: the final state was the initial one.
    """
    if x.numel():
        return chosen.backward(dy, dfinal, x, *inputs, **options)
    *tensors, first = (x, *inputs[:8])
    dfirst = None if first is None else torch.zeros_like(first)
    if dfirst is not None and dfinal is not None:
        dfirst.copy_(dfinal)
    return (*(None if t is None else torch.zeros_like(t) for t in tensors), dfirst)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    *,
    dt_softplus: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y and the final state by the kernel of this backend; differentiable."""
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    keep = keeps(*tensors)
    y, final_state, _ = _forward(*tensors, resets, dt_softplus, keep, backend)
    return y, final_state


@kernel_op("mambabyte::selective_scan")
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    dt_softplus: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(backend, x, A.shape[1]).forward(
        x, dt, A, B, C, D, z, dt_bias, initial_state, resets, dt_softplus=dt_softplus, keep=keep
    )


@_forward.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, initial_state, resets, dt_softplus, keep, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    batch, length, channels = x.shape
    states = A.shape[1]
    shape = kernels(backend, x, states).checkpoint_shape(batch, length, channels, states) if keep else (0,)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    final_state = x.new_empty((batch, channels, states), dtype=compute)
    return x.new_empty(x.shape), final_state, x.new_empty(shape, dtype=compute)


@kernel_op("mambabyte::selective_scan_backward")
def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    checkpoints: Tensor,
    dt_softplus: bool,
    backend: str,
) -> list[Tensor]:
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state, resets, checkpoints)
    found = gradients(kernels(backend, x, A.shape[1]), dy, dfinal, *inputs, dt_softplus=dt_softplus)
    return [g for g in found if g is not None]


@_backward.register_fake
def _(dy, dfinal, x, dt, A, B, C, D, z, dt_bias, initial_state, resets, checkpoints, dt_softplus, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return [t.new_empty(t.shape) for t in (x, dt, A, B, C, D, z, dt_bias, initial_state) if t is not None]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, resets, ctx.dt_softplus, keep, ctx.backend = inputs
    assert keep, "the scan was run without checkpoints although a gradient is asked for"
    ctx.save_for_backward(*tensors, resets, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dfinal, _):  # type: ignore[no-untyped-def]
    *tensors, resets, checkpoints = ctx.saved_tensors
    if dy is None:  # only the final state is used
        dy = torch.zeros_like(tensors[0])
    present = iter(_backward(dy, dfinal, *tensors, resets, checkpoints, ctx.dt_softplus, ctx.backend))
    return (*(None if t is None else next(present) for t in tensors), None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
