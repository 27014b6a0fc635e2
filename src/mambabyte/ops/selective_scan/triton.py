"""The selective scan in Triton: the portable route to a GPU, for any that Triton compiles for.

Design and memory: docs/kernels.md, section Triton. Inputs may have any dtypes and strides; one whose channels (or, of B
and C, states) are not neighbours in memory is copied. Gradients are the same bits in every run.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mambabyte.ops import triton_support
from mambabyte.ops.triton_support import Rows, flags, floats, rows

MAX_STATES = 64
# Channels of a program; positions between checkpoints; rows that are read at once, and whose states a walk back holds.
BLOCK, CHUNK, FORWARD_ROWS, BACKWARD_ROWS = 32, 32, 4, 2
# States of a channel that one warp takes; more would not fit into its registers.
STATES_A_WARP = 16
# Time is cut into segments of at least so many rows where there are fewer programs a multiprocessor than these.
SEGMENT_ROWS, PROGRAMS = 256, 8


def why_not(x: Tensor, states: int) -> str | None:
    """A sentence why the Triton kernels cannot run on x with this many states; None when they can."""
    if states > MAX_STATES:
        return f"its kernels hold at most {MAX_STATES} states, not {states}"
    return triton_support.why_not(x)


def checkpoint_shape(batch: int, length: int, channels: int, states: int) -> tuple[int, ...]:
    """Shape of the float32 states that the forward keeps for the backward, one every CHUNK rows."""
    return (batch, -(-length // CHUNK), states, channels)


class Inputs(NamedTuple):
    """The tensors of a call as the kernels take them, and how its work is cut."""

    x: Rows
    dt: Rows
    z: Rows | None
    B: Rows
    C: Rows
    A: Tensor
    D: Tensor | None
    bias: Tensor | None
    resets: Tensor | None
    softplus: bool
    sizes: tuple[int, int, int, int]  # batch, length, channels, states
    segment_rows: int

    @classmethod
    def of(
        cls,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        resets: Tensor | None,
        dt_softplus: bool,
    ) -> "Inputs":
        """A transposed and in base 2, parameters in float32."""
        batch, length, channels = x.shape
        wanted = PROGRAMS * triton_support.multiprocessors(x.device) // max(1, batch * -(-channels // BLOCK))
        segments = max(1, min(wanted, length // SEGMENT_ROWS))
        return cls(
            rows(x),
            rows(dt),
            None if z is None else rows(z),
            rows(B),
            rows(C),
            _columns(A.float() * math.log2(math.e)),
            None if D is None else floats(D),
            None if dt_bias is None else floats(dt_bias),
            flags(resets),
            dt_softplus,
            (batch, length, channels, A.shape[1]),
            -(-length // (segments * CHUNK)) * CHUNK,
        )

    @property
    def segments(self) -> int:
        """Into how many time is cut."""
        return -(-self.sizes[1] // self.segment_rows)

    @property
    def programs(self) -> int:
        """Of each kernel that walks the rows."""
        return self.sizes[0] * self.segments * self.blocks

    @property
    def blocks(self) -> int:
        """Of channels."""
        return -(-self.sizes[2] // BLOCK)

    @property
    def walk(self) -> tuple[int, int, int, int]:
        """The arguments `length, channels, segments, segment_rows`."""
        return self.sizes[1], self.sizes[2], self.segments, self.segment_rows

    @property
    def options(self) -> dict[str, int]:
        """What kernels are compiled for."""
        return _tile(self.sizes[3])

    def new(self, *shape: int) -> Tensor:
        """An uninitialised float32 tensor."""
        return self.A.new_empty(shape)


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
    """y in x's dtype, the final state (B, E, N) float32, and with `keep` the states every CHUNK rows."""
    from mambabyte.ops.selective_scan import triton_kernels

    batch, length, channels = x.shape
    shape = checkpoint_shape(batch, length, channels, A.shape[1]) if keep else (0,)
    checkpoints = x.new_empty(shape, dtype=torch.float32)
    y = x.new_empty(x.shape)
    if x.numel() == 0:
        return y, _state_of_nothing(initial_state, batch, A), checkpoints
    inputs = Inputs.of(x, dt, A, B, C, D, z, dt_bias, resets, dt_softplus)
    first = None if initial_state is None else _columns(initial_state)
    ends = inputs.new(batch, inputs.segments, A.shape[1], channels)
    arguments = *inputs[:5], *inputs[5:9]
    options = inputs.options | {"SOFTPLUS": dt_softplus, "CHUNK": CHUNK, "ROWS": FORWARD_ROWS}
    kernel = triton_kernels.forward[(inputs.programs,)]
    with triton_support.on(x.device):
        if inputs.segments > 1:
            elapsed = inputs.new(batch, inputs.segments, channels)
            chained = torch.empty_like(ends)
            kernel(*arguments, None, None, chained, elapsed, None, *inputs.walk, **options)
            first = _carry(inputs, chained, elapsed, first, back=False)
        kernel(*arguments, first, y, ends, None, checkpoints if keep else None, *inputs.walk, **options)
    return y, _states(ends[:, -1]), checkpoints


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
    dz: Tensor | None = None,
    y: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and the initial state in the dtypes of their tensors; None for None.

    Given `dz`, with neighbouring channels, the gradient of z is written there; given `y`, contiguous, the output of the
    forward is written there again. Both need z. x is not empty.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    inputs = Inputs.of(x, dt, A, B, C, D, z, dt_bias, resets, dt_softplus)
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device) if z is not None and dz is None else dz
    with triton_support.on(x.device):
        gradients = _backward(inputs, dy, dfinal, checkpoints, dz, y, wants_first=initial_state is not None)
    return tuple(None if t is None or g is None else g.to(t.dtype) for t, g in zip(tensors, gradients, strict=True))


def _backward(
    inputs: Inputs,
    dy: Tensor,
    dfinal: Tensor | None,
    checkpoints: Tensor,
    dz: Tensor | None,
    y: Tensor | None,
    *,
    wants_first: bool,
) -> tuple[Tensor | None, ...]:
    from mambabyte.ops.selective_scan import triton_kernels

    batch, length, channels, states = inputs.sizes
    options = inputs.options | {"SOFTPLUS": inputs.softplus}
    walks, dy_rows = (batch, inputs.segments), rows(dy)
    last = None if dfinal is None else _columns(dfinal)
    if inputs.segments > 1:
        chained, elapsed = inputs.new(*walks, states, channels), inputs.new(*walks, channels)
        triton_kernels.adjoint[(inputs.programs,)](
            *(inputs.dt, inputs.z, dy_rows, inputs.C, inputs.A, inputs.bias, inputs.resets),
            *(chained, elapsed, *inputs.walk),
            **options,
            ROWS=FORWARD_ROWS,
        )
        last = _carry(inputs, chained, elapsed, last, back=True)
    x, dt = inputs.x[0], inputs.dt[0]
    dx, ddt = x.new_empty(x.shape), dt.new_empty(dt.shape)
    dA, first = inputs.new(*walks, states, channels), inputs.new(*walks, states, channels) if wants_first else None
    dD, dbias = inputs.new(*walks, channels), inputs.new(*walks, channels)
    partial = inputs.new(batch, inputs.blocks, length, 2, states)
    scratch = inputs.new(inputs.programs, CHUNK // BACKWARD_ROWS, options["N"], BLOCK)
    triton_kernels.backward[(inputs.programs,)](
        *(inputs.x, inputs.dt, inputs.z, dy_rows, inputs.B, inputs.C, *inputs[5:9]),
        *(checkpoints, last, scratch, dx, ddt, None if dz is None else rows(dz), y),
        *(dA, dD, dbias, partial, first, *inputs.walk),
        **options,
        CHUNK=CHUNK,
        ROWS=BACKWARD_ROWS,
    )
    dB, dC = partial.sum(1).unbind(2)
    dinitial = None if first is None else _states(first[:, 0])
    return (
        *(dx, ddt, _states(dA.sum((0, 1))), dB.contiguous(), dC.contiguous()),
        *(dD.sum((0, 1)), dz, dbias.sum((0, 1)), dinitial),
    )


def _carry(inputs: Inputs, chained: Tensor, elapsed: Tensor, first: Tensor | None, *, back: bool) -> Tensor:
    """(B, segments, N, E): the state before each segment, or, back in time, the gradient of the state after it."""
    from mambabyte.ops.selective_scan import triton_kernels

    arguments = chained, elapsed, inputs.A, first, inputs.segments, inputs.sizes[2]
    triton_kernels.carry[(inputs.sizes[0] * inputs.blocks,)](*arguments, **inputs.options, BACK=back)
    return chained


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
    """One position for every row: y (B, E); `state` (B, E, N) is updated in place."""
    from mambabyte.ops.selective_scan import triton_kernels

    batch, channels = x.shape
    y = x.new_empty(x.shape)
    if x.numel() == 0:
        return y
    own = state if state.dtype == torch.float32 else state.float()
    parameters = (None if t is None else floats(t) for t in (D, dt_bias))
    activations = (None if t is None else rows(t) for t in (x, dt, z, B, C))
    with triton_support.on(x.device):
        triton_kernels.step[(batch * -(-channels // BLOCK),)](
            *((own, *own.stride()), *activations, _columns(A.float() * math.log2(math.e)), *parameters, y, channels),
            **_tile(A.shape[1]),
            SOFTPLUS=dt_softplus,
        )
    if own is not state:
        state.copy_(own)
    return y


def _tile(states: int) -> dict[str, int]:
    padded = 1 << (states - 1).bit_length()
    return {"STATES": states, "N": padded, "BLOCK": BLOCK, "num_warps": max(1, padded // STATES_A_WARP)}


def _columns(tensor: Tensor) -> Tensor:
    """(..., E, N) as (..., N, E), float32 and contiguous."""
    return floats(tensor.transpose(-1, -2))


def _states(tensor: Tensor) -> Tensor:
    """(..., N, E) as (..., E, N), contiguous and owning its memory."""
    return tensor.transpose(-1, -2).clone(memory_format=torch.contiguous_format)


def _state_of_nothing(initial_state: Tensor | None, batch: int, A: Tensor) -> Tensor:
    if initial_state is None:
        return A.new_zeros((batch, *A.shape), dtype=torch.float32)
    return initial_state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
