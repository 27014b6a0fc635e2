"""The causal convolution on a CPU: prepares tensors for the kernels of `cpu_ir` and calls them.

Results do not depend on the number of threads, bit for bit.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mambabyte.ops.causal_conv import cpu_ir
from mambabyte.ops.native import Kernel, threads_for
from mambabyte.ops.panels import block, blocks_of, counts, pad_channels, panel_for, rows, sum_in_order, unblock
from mambabyte.ops.target import host_target
from mambabyte.ops.vector_values import BFLOAT, FLOAT

# Single-thread nanoseconds per element, to decide whether a second thread pays.
FORWARD_NANOSECONDS, BACKWARD_NANOSECONDS = 0.5, 1.0


def why_not(x: Tensor, width: int) -> str | None:
    """Why the kernels cannot serve this tensor, or None. Any shape and width will do."""
    del width
    if x.dtype == torch.float64:
        return "the CPU kernels compute in float32, and the tensor is float64"
    return None


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    *,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """y and the final state (batch, W - 1, channels), both in x's dtype. Tensors as in the contract, of any strides."""
    batch, length, channels = x.shape
    width, dtype = weight.shape[1], _row_dtype(x)
    inputs = rows(x.to(dtype))
    y = torch.empty(x.shape, dtype=dtype)
    past = pad_channels(initial_state, channels, batch, width - 1)
    blocks = batch * blocks_of(channels)
    threads = threads_for(FORWARD_NANOSECONDS * x.numel(), blocks)
    kernel = _kernel(cpu_ir.forward, width, dtype, activation, resets is not None)
    kernel(
        threads=threads, x=inputs, x_row=inputs.stride(1), y=y, past=past, weight=block(weight[None]),
        bias=pad_channels(bias, channels), resets=None if resets is None else resets.contiguous(),
        **counts(batch, length, channels, panel_for(blocks, threads)),
    )  # fmt: skip
    return y.to(x.dtype), past[..., :channels].to(x.dtype).clone(memory_format=torch.contiguous_format)


def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    *,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and initial_state, each in the dtype of its tensor; None for None."""
    batch, length, channels = x.shape
    width, dtype = weight.shape[1], _row_dtype(x)
    inputs, dy = rows(x.to(dtype)), rows(dy.to(dtype))
    dx = torch.empty(x.shape, dtype=dtype)
    dinitial = torch.empty(batch, width - 1, channels, dtype=dtype)
    past = pad_channels(initial_state, channels, batch, width - 1)
    pending, visible = torch.zeros_like(past), torch.ones_like(past)
    dweight = torch.zeros(batch, blocks_of(channels), width, host_target().lanes)
    dbias = pad_channels(None, channels, batch)
    blocks = batch * blocks_of(channels)
    threads = threads_for(BACKWARD_NANOSECONDS * x.numel(), blocks)
    kernel = _kernel(cpu_ir.backward, width, dtype, activation, resets is not None)
    kernel(
        threads=threads, x=inputs, x_row=inputs.stride(1), dy=dy, dy_row=dy.stride(1), dx=dx, dinitial=dinitial,
        past=past, pending=pending, visible=visible, dweight=dweight, dbias=dbias, weight=block(weight[None]),
        bias=pad_channels(bias, channels), resets=None if resets is None else resets.contiguous(),
        **counts(batch, length, channels, panel_for(blocks, threads)),
    )  # fmt: skip
    last = pending[..., :channels]
    if dfinal is not None:
        last = last + dfinal * visible[..., :channels]
    # input k of the W - 1 last ones is position length - (W - 1) + k, or lies in the initial state if that is negative
    in_state = max(0, width - 1 - length)
    dinitial[:, width - 1 - in_state :] = last[:, :in_state]
    dx[:, length - (width - 1 - in_state) :] = last[:, in_state:]
    gradient = unblock(sum_in_order(dweight)[None], channels)[0]
    return (
        dx.to(x.dtype),
        gradient.to(weight.dtype),
        None if bias is None else sum_in_order(dbias)[:channels].to(bias.dtype, copy=True),
        None if initial_state is None else dinitial.to(initial_state.dtype),
    )


def step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str | None) -> Tensor:
    """One position: updates `state` (batch, W - 1, channels) in place and returns y (batch, channels) in x's dtype."""
    batch, channels = x.shape
    dtype = _row_dtype(x)
    # a copy only where the caller's state is not what the kernel can write to
    own = state if state.dtype == dtype and state.is_contiguous() else state.to(dtype).contiguous()
    y = torch.empty(x.shape, dtype=dtype)
    tasks = batch * blocks_of(channels)
    _kernel(cpu_ir.step, weight.shape[1], dtype, activation, resets=False)(
        threads=1, state=own, x=x.to(dtype).contiguous(), y=y, weight=weight.float().contiguous(),
        bias=torch.zeros(channels) if bias is None else bias.float().contiguous(),
        channels=channels, blocks=blocks_of(channels), tasks=tasks,
    )  # fmt: skip
    if own is not state:
        state.copy_(own)
    return y.to(x.dtype)


def _row_dtype(x: Tensor) -> torch.dtype:
    """What rows are read and written in: bfloat16 as it is, anything else widened to float32 first."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


@functools.cache
def _kernel(write, width: int, dtype: torch.dtype, activation: str | None, resets: bool) -> Kernel:  # type: ignore[no-untyped-def]
    element = BFLOAT if dtype == torch.bfloat16 else FLOAT
    return Kernel(write(host_target(), cpu_ir.Variant(width, element, activation == "silu", resets)))
