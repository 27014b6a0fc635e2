"""The selective scan on an NVIDIA GPU: CUDA C++ in forward.cu, backward.cu and step.cu, compiled at run time.

Derivation, layouts and measurements: docs/kernels.md, section GPU. Inputs may be strided as long as channels (of x, dt,
z) and states (of B, C) are neighbours in memory, anything else is copied. Gradients are the same bits in every run. A
position whose step is 0 (dt -inf before softplus) leaves the state as it is, bit for bit: a batch of rows that accept
different numbers of positions is one call.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mambabyte.ops import nvrtc
from mambabyte.ops.selective_scan.cuda_plan import (
    BATCH,
    CHUNK,
    FORWARD_TILE,
    TILE,
    Plan,
    forward_blocks,
    group,
    plan,
)

HEADERS = ("device.cuh", "selective_scan/layout.cuh", "selective_scan/sums.cuh")
MAX_STATES = 64


def why_not(x: Tensor, states: int) -> str | None:
    """A sentence why the CUDA kernels cannot run on x with this many states; None when they can."""
    if states > MAX_STATES:
        return f"its kernels hold at most {MAX_STATES} states, not {states}"
    return nvrtc.why_not(x)


def checkpoint_shape(batch: int, length: int, channels: int, states: int) -> tuple[int, ...]:
    """Shape of the float32 states that the forward keeps for the backward, one every CHUNK rows."""
    return (batch, -(-length // CHUNK), channels, states)


class Options(NamedTuple):
    """The macros that every kernel of the scan takes, named as there in capitals."""

    io: int
    n: int
    warps: int
    gated: bool
    resets: bool
    softplus: bool
    aligned: bool
    aligned_bc: bool

    def defines(self) -> dict[str, int]:
        """As the compiler takes them."""
        return {name.upper(): int(value) for name, value in self._asdict().items()} | {"CHUNK": CHUNK}


@lru_cache(maxsize=1024)
def _forward_kernel(name: str, options: Options) -> nvrtc.Kernel:
    sources = (*HEADERS, "selective_scan/forward.cu")
    blocks = forward_blocks(floats=options.io == nvrtc.IO_CODES[torch.float32], resets=options.resets)
    return nvrtc.get(sources, name, **options.defines(), TILE=FORWARD_TILE, BATCH=BATCH, MIN_BLOCKS=blocks)


@lru_cache(maxsize=1024)
def _backward_kernel(name: str, options: Options, shared: int) -> nvrtc.Kernel:
    sources = (*HEADERS, "selective_scan/backward.cu")
    sizes = {"TILE": TILE, "GROUP": group(options.n), "MIN_BLOCKS": 1, "SHARED_BYTES": shared}
    return nvrtc.get(sources, name, **options.defines(), **sizes)


@lru_cache(maxsize=1024)
def _step_kernel(dtype: torch.dtype, states: int, gated: bool, softplus: bool) -> nvrtc.Kernel:
    options = Options(nvrtc.IO_CODES[dtype], states, 1, gated, False, softplus, False, False)
    return nvrtc.get((*HEADERS, "selective_scan/step.cu"), "scan_step", **options.defines())


class Inputs(NamedTuple):
    """The tensors of a call as the kernels take them: one activation dtype, contiguous rows, float32 parameters."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    resets: Tensor | None
    dt_softplus: bool

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
        """Mixed activation dtypes are computed in float32."""
        dtype = x.dtype
        if dt.dtype != dtype or B.dtype != dtype or C.dtype != dtype or (z is not None and z.dtype != dtype):
            dtype = torch.float32
        return cls(
            _rows(x, dtype),
            _rows(dt, dtype),
            nvrtc.floats(A),
            _rows(B, dtype),
            _rows(C, dtype),
            nvrtc.floats(D),
            None if z is None else _rows(z, dtype),
            nvrtc.floats(dt_bias),
            None if resets is None else resets.contiguous(),
            dt_softplus,
        )

    def piece(self, rows: slice, time: slice) -> "Inputs":
        """The same for some batch rows and a stretch of time."""
        x, dt, B, C = (t[rows, time] for t in (self.x, self.dt, self.B, self.C))
        z, resets = (None if t is None else t[rows, time] for t in (self.z, self.resets))
        return self._replace(x=x, dt=dt, B=B, C=C, z=z, resets=resets)

    def plan(self) -> Plan:
        """The layout for these shapes on this GPU."""
        batch, length, width = self.x.shape
        return plan(batch, length, width, self.A.shape[1], _multiprocessors(self.x.device.index))

    def options(self, plan: Plan, *others: Tensor) -> "Options":
        """What the kernels are compiled for; `others` are further (B, L, E) tensors whose quads may be whole or not."""
        return Options(
            nvrtc.IO_CODES[self.x.dtype],
            plan.states,
            plan.warps,
            self.z is not None,
            self.resets is not None,
            self.dt_softplus,
            nvrtc.whole_quads(self.x, self.dt, self.z, *others),
            nvrtc.whole_quads(self.B, self.C),
        )

    def arguments(self, plan: Plan, x: Tensor | None = None) -> list[Tensor | int | None]:
        """The parameters that the kernels of forward.cu share; x may be replaced (by dy, for the adjoints)."""
        _, length, width = self.x.shape
        strided = [_strided(t) for t in (self.x if x is None else x, self.dt, self.z, self.B, self.C)]
        fixed = [self.A, self.D, self.dt_bias, self.resets, length, width, plan.segments, plan.segment_rows]
        return [*(argument for three in strided for argument in three), *fixed]


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
    inputs = Inputs.of(x, dt, A, B, C, D, z, dt_bias, resets, dt_softplus)
    batch, length, width = x.shape
    first = nvrtc.floats(initial_state)
    shape = checkpoint_shape(batch, length, width, A.shape[1]) if keep else (0,)
    checkpoints = x.new_empty(shape, dtype=torch.float32)
    y, last = inputs.x.new_empty(x.shape), x.new_empty((batch, *A.shape), dtype=torch.float32)
    if x.numel() == 0:
        last.copy_(first) if first is not None else last.zero_()
        return y.to(x.dtype), last, checkpoints
    with torch.cuda.device(x.device):
        laid = inputs.plan()
        if laid.segments > 1:
            first = _chain(inputs, laid, "scan_segment_states", first, None)
        kernel = _forward_kernel("scan_forward", inputs.options(laid, y))
        arguments = inputs.arguments(laid)
        kernel(laid.grid, laid.warps * 32, *arguments, first, y, last, checkpoints if keep else None)
    return y if y.dtype == x.dtype else y.to(x.dtype), last, checkpoints


def _chain(inputs: Inputs, laid: Plan, kernel: str, first: Tensor | None, dy: Tensor | None) -> Tensor:
    """(B, segments, E, N): the state before each segment; given dy, the gradient of the state after each segment."""
    width, states = inputs.A.shape
    chained = inputs.A.new_empty(laid.batch, laid.segments, width, states)
    elapsed = inputs.A.new_empty(laid.batch, laid.segments, width)
    options = inputs.options(laid) if dy is None else inputs.options(laid, dy)
    grid = laid.batch * (laid.segments - 1), laid.blocks  # nothing follows the last segment
    _forward_kernel(kernel, options)(grid, laid.warps * 32, *inputs.arguments(laid, dy), chained, elapsed)
    threads = 256
    grid = (laid.batch, -(-width * states // threads))
    _forward_kernel("scan_carry", options)(
        grid, threads, chained, elapsed, inputs.A, first, laid.segments, width, int(dy is not None)
    )
    return chained


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
    forward is written there again. Both need one dtype for x, dt, B, C and z, and z itself. x is not empty.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    inputs = Inputs.of(x, dt, A, B, C, D, z, dt_bias, resets, dt_softplus)
    last = nvrtc.floats(dfinal)
    with torch.cuda.device(x.device):
        dy = _rows(dy, inputs.x.dtype)
        dz = inputs.x.new_empty(x.shape) if dz is None and z is not None else dz
        gradients = _backward(inputs, dy, last, checkpoints, dz, y, wants_first=initial_state is not None)
    return tuple(None if t is None or g is None else g.to(t.dtype) for t, g in zip(tensors, gradients, strict=True))


class Written(NamedTuple):
    """What the backward writes for each position: the gradients of these, and what the forward returned again, as y."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    y: Tensor | None

    def piece(self, rows: slice, time: slice) -> "Written":
        """The same for some batch rows and a stretch of time."""
        x, dt, B, C = (t[rows, time] for t in self[:4])
        z, y = (None if t is None else t[rows, time] for t in self[4:])
        return Written(x, dt, B, C, z, y)


def _backward(
    inputs: Inputs,
    dy: Tensor,
    last: Tensor | None,
    checkpoints: Tensor,
    dz: Tensor | None,
    y: Tensor | None,
    *,
    wants_first: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and the first state, one piece of the work after another."""
    new, length = inputs.x.new_empty, inputs.x.shape[1]
    to = Written(new(dy.shape), new(dy.shape), new(inputs.B.shape), new(inputs.C.shape), dz, y)
    pieces = list(inputs.plan().pieces())
    first = None
    if wants_first or len(pieces) > 1:
        first = inputs.A.new_empty(inputs.x.shape[0], *inputs.A.shape)
    totals: tuple[Tensor, ...] = ()
    for rows, time in pieces:
        after, before = last if time.stop >= length else first, None if first is None else first[rows]
        after = None if after is None else after[rows]
        kept = checkpoints[rows, time.start // CHUNK : -(-time.stop // CHUNK)]
        found = _walk_back(inputs.piece(rows, time), dy[rows, time], after, kept, to.piece(rows, time), before)
        totals = tuple(a + b for a, b in zip(totals, found, strict=True)) if totals else found
    dA, dD, dbias = totals
    return to.x, to.dt, dA, to.B, to.C, dD, dz, dbias, first


def _walk_back(
    inputs: Inputs, dy: Tensor, last: Tensor | None, checkpoints: Tensor, to: Written, first: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of A, D and dt_bias, given that of the state after the last position; the others are written.

    `first` receives the gradient of the state before the first position.
    """
    laid = inputs.plan()
    batch, length, width, states = laid.batch, laid.length, laid.width, laid.states
    if laid.segments > 1:
        last = _chain(inputs, laid, "scan_segment_adjoints", last, dy)
    dA = inputs.A.new_empty(batch * laid.segments, width, states)
    dD, dbias = inputs.A.new_empty(batch * laid.segments, width), inputs.A.new_empty(batch * laid.segments, width)
    partial = inputs.A.new_empty(laid.blocks, batch, length, 2, laid.padded_states)
    options = inputs.options(laid, dy) if to.z is None else inputs.options(laid, dy, to.z)
    strided = [_strided(t) for t in (inputs.x, inputs.dt, inputs.z, dy, inputs.B, inputs.C)]
    _backward_kernel("scan_backward", options, laid.shared_backward)(
        laid.grid,
        laid.warps * 32,
        *(argument for three in strided for argument in three),
        *(inputs.A, inputs.D, inputs.dt_bias, inputs.resets, length, width, laid.segments, laid.segment_rows),
        *(checkpoints, last, to.x, to.dt, *_strided(to.z), to.y, dA, dD, dbias, partial, first),
        shared=laid.shared_backward,
    )
    rows, threads = batch * length, 256
    elements = rows * 2 * laid.padded_states
    add = _backward_kernel("scan_sum_blocks", options, laid.shared_backward)
    add((-(-elements // threads),), threads, partial, to.B, to.C, laid.blocks, rows)
    return dA.sum(0), dD.sum(0), dbias.sum(0)


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
    """One position for every row: y (B, E); `state` (B, E, N) float32 is updated in place."""
    if state.dtype != torch.float32 or state.stride()[1:] != (A.shape[1], 1):
        updated = state.float().contiguous()
        y = step(updated, x, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus)
        state.copy_(updated)
        return y
    inputs = Inputs.of(x, dt, A, B, C, D, z, dt_bias, None, dt_softplus)
    batch, width = x.shape
    y = inputs.x.new_empty(x.shape)
    if x.numel() == 0:
        return y.to(x.dtype)
    laid = plan(batch, 1, width, A.shape[1])
    threads = 128
    kernel = _step_kernel(inputs.x.dtype, laid.states, z is not None, dt_softplus)
    rows = [argument for t in (inputs.x, inputs.dt, inputs.z, inputs.B, inputs.C) for argument in _row(t)]
    with torch.cuda.device(x.device):
        grid = (batch, -(-width * (laid.padded_states // 4) // threads))
        kernel(grid, threads, *_row(state), *rows, inputs.A, inputs.D, inputs.dt_bias, y, width)
    return y if y.dtype == x.dtype else y.to(x.dtype)


@lru_cache(maxsize=64)
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return nvrtc.neighbouring(tensor if tensor.dtype == dtype else tensor.to(dtype))


def _strided(tensor: Tensor | None) -> tuple[Tensor | None, int, int]:
    return (None, 0, 0) if tensor is None else (tensor, tensor.stride(0), tensor.stride(1))


def _row(tensor: Tensor | None) -> tuple[Tensor | None, int]:
    return (None, 0) if tensor is None else (tensor, tensor.stride(0))
