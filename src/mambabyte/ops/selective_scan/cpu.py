"""The selective scan on a CPU: prepares tensors for the kernels of `cpu_ir` and the single step, and calls them.

Results do not depend on the number of threads, bit for bit: every sum that crosses tasks is a partial per task, added
up in a fixed order.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mambabyte.ops.native import Kernel, threads_for
from mambabyte.ops.panels import (
    CHUNK,
    PANEL,
    block,
    blocks_of,
    counts,
    pad_channels,
    panel_for,
    rows,
    sum_in_order,
    unblock,
)
from mambabyte.ops.selective_scan import cpu_ir, cpu_step_ir
from mambabyte.ops.target import host_target
from mambabyte.ops.vector_math import LOG2E
from mambabyte.ops.vector_values import BFLOAT, FLOAT

# Single-thread nanoseconds per (position, channel, state), to decide whether a second thread pays.
FORWARD_NANOSECONDS, BACKWARD_NANOSECONDS, STEP_NANOSECONDS = 0.2, 0.5, 0.5


def why_not(x: Tensor, states: int) -> str | None:
    """Why the kernels cannot serve this tensor, or None. Any shape and number of states will do."""
    del states
    if x.dtype == torch.float64:
        return "the CPU kernels compute in float32, and the tensor is float64"
    return None


def checkpoint_shape(batch: int, length: int, channels: int, states: int) -> tuple[int, ...]:
    """Shape of what forward keeps for backward: the state at the start of every chunk of positions, blocked."""
    lanes = host_target().lanes
    return (batch, -(-length // CHUNK), blocks_of(channels), states, lanes)


def forward(
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
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y in x's dtype, the final state and, if `keep`, the checkpoints for backward (else an empty tensor).

    Tensors as in the contract, of any strides.
    """
    batch, length, channels = x.shape
    states = A.shape[1]
    inputs = _Inputs(x, dt, A, B, C, D, z, dt_bias, resets)
    y = torch.empty(x.shape, dtype=inputs.dtype)
    if initial_state is None:
        state = torch.zeros(batch, *inputs.blocked)
    else:
        state = block(initial_state)
    checkpoints = torch.empty(checkpoint_shape(batch, length, channels, states) if keep else (0,))
    threads = threads_for(FORWARD_NANOSECONDS * x.numel() * states, batch * inputs.blocks)
    kernel = _kernel(cpu_ir.forward, states, inputs.dtype, dt_softplus, z is not None)
    kernel(
        threads=threads,
        y=y,
        state=state,
        checkpoints=checkpoints,
        keep=int(keep),
        **inputs.arguments(panel_for(batch * inputs.blocks, threads)),
    )
    return y.to(x.dtype), unblock(state, channels), checkpoints


def backward(
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
    *,
    dt_softplus: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and initial_state, each in the dtype of its tensor; None for None.

    `dfinal` is the gradient of the final state, None for zero.
    """
    batch, length, channels = x.shape
    states = A.shape[1]
    inputs = _Inputs(x, dt, A, B, C, D, z, dt_bias, resets)
    dy = rows(dy.to(inputs.dtype))
    dx, ddt, dz = (torch.empty(x.shape, dtype=inputs.dtype) for _ in range(3))
    adjoint = torch.zeros(batch, *inputs.blocked) if dfinal is None else block(dfinal)
    dA = torch.zeros(batch, *inputs.blocked)
    dD, dbias = (pad_channels(None, channels, batch) for _ in range(2))
    # fixed by the shape alone, because dB and dC are summed panel by panel
    panel = min(PANEL, max(4, batch * inputs.blocks // 16))
    arguments = inputs.arguments(panel)
    dBC = torch.empty(arguments["panels"], batch, length, 2 * states)
    threads = threads_for(BACKWARD_NANOSECONDS * x.numel() * states, arguments["tasks"])
    kernel = _kernel(cpu_ir.backward, states, inputs.dtype, dt_softplus, z is not None)
    kernel(
        threads=threads, dy=dy, dy_row=dy.stride(1), dx=dx, ddt=ddt, dz=dz, checkpoints=checkpoints, adjoint=adjoint,
        dA=dA, dD=dD, dbias=dbias, dBC=dBC, **arguments,
    )  # fmt: skip
    dBC = sum_in_order(dBC).view(batch, length, states, 2)
    gradients = {
        "x": (x, dx),
        "dt": (dt, ddt),
        "A": (A, unblock(sum_in_order(dA)[None], channels)[0]),
        "B": (B, dBC[..., 0]),
        "C": (C, dBC[..., 1]),
        "D": (D, sum_in_order(dD)[:channels]),
        "z": (z, dz),
        "dt_bias": (dt_bias, sum_in_order(dbias)[:channels]),
        "initial_state": (initial_state, unblock(adjoint, channels)),
    }
    return tuple(None if t is None else _as(t.dtype, g) for t, g in gradients.values())


def _as(dtype: torch.dtype, gradient: Tensor) -> Tensor:
    """The gradient in this dtype, contiguous, owning its memory (two outputs of a torch op must not share any)."""
    if gradient.dtype == dtype and gradient._base is None:
        return gradient
    return gradient.to(dtype, copy=True, memory_format=torch.contiguous_format)


class _Inputs:
    """The inputs that forward and backward share, as the kernels want them."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        resets: Tensor | None,
    ):
        self.dtype = _common_dtype([t for t in (x, dt, z) if t is not None])
        self.batch, self.length, self.channels = x.shape
        self.blocks = blocks_of(self.channels)
        self.blocked = (self.blocks, A.shape[1], host_target().lanes)
        self.x, self.dt = rows(x.to(self.dtype)), rows(dt.to(self.dtype))
        self.z = None if z is None else rows(z.to(self.dtype))
        self.A = block(A[None].float() * LOG2E)
        self.B, self.C = B.float().contiguous(), C.float().contiguous()
        self.D, self.bias = (pad_channels(t, self.channels) for t in (D, dt_bias))
        self.reset_stride = int(resets is not None)
        self.resets = torch.zeros(1, dtype=torch.bool) if resets is None else resets.contiguous()

    def arguments(self, panel: int) -> dict:
        """The arguments of the kernels that come from the inputs, with channels cut into panels of so many blocks."""
        return {
            "x": self.x,
            "dt": self.dt,
            "z": self.z,
            "A": self.A,
            "B": self.B,
            "C": self.C,
            "D": self.D,
            "bias": self.bias,
            "resets": self.resets,
            "reset_stride": self.reset_stride,
            "x_row": self.x.stride(1),
            "dt_row": self.dt.stride(1),
            "z_row": 0 if self.z is None else self.z.stride(1),
            **counts(self.batch, self.length, self.channels, panel),
        }


def step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    *,
    dt_softplus: bool,
) -> Tensor:
    """One position: updates `state` (batch, channels, states) in place and returns y (batch, channels) in x's dtype."""
    batch, channels = x.shape
    states = A.shape[1]
    tensors = [t for t in (x, dt, z) if t is not None]
    dtype = _common_dtype(tensors)
    x_, dt_, z_ = (None if t is None else t.to(dtype).contiguous() for t in (x, dt, z))
    y = torch.empty(x.shape, dtype=dtype)
    # a copy only where the caller's state is not what the kernel can write to
    own = state if state.dtype == torch.float32 and state.is_contiguous() else state.float().contiguous()
    D, bias = (_zeros(channels) if t is None else t.float().contiguous() for t in (D, dt_bias))
    A, B, C = (t.float().contiguous() for t in (A, B, C))
    tasks = batch * blocks_of(channels)
    kernel = _kernel(cpu_step_ir.step, states, dtype, dt_softplus, z is not None)
    kernel(
        threads=threads_for(STEP_NANOSECONDS * own.numel(), tasks), state=own, x=x_, dt=dt_, A=A, B=B, C=C, D=D, z=z_,
        bias=bias, y=y, channels=channels, blocks=blocks_of(channels), tasks=tasks,
    )  # fmt: skip
    if own is not state:
        state.copy_(own)
    return y.to(x.dtype)


def _common_dtype(tensors: list[Tensor]) -> torch.dtype:
    """What rows are read and written in: bfloat16 if all are; any other mixture is widened to float32 first."""
    return torch.bfloat16 if all(t.dtype == torch.bfloat16 for t in tensors) else torch.float32


@functools.lru_cache(maxsize=8)
def _zeros(size: int) -> Tensor:
    return torch.zeros(size)


@functools.cache
def _kernel(write, states: int, dtype: torch.dtype, softplus: bool, gate: bool) -> Kernel:  # type: ignore[no-untyped-def]
    element = BFLOAT if dtype == torch.bfloat16 else FLOAT
    return Kernel(write(host_target(), cpu_ir.Variant(states, element, softplus, gate)))
