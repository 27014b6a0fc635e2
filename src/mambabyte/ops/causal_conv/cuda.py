"""The causal convolution on an NVIDIA GPU: CUDA C++, compiled at run time. Gradients are deterministic.

Inputs may be strided as long as channels are neighbours in memory, anything else is copied.
"""

from functools import lru_cache

import torch
from torch import Tensor

from mambabyte.ops import nvrtc
from mambabyte.ops.causal_conv import cuda_plan
from mambabyte.ops.causal_conv.cuda_plan import Problem

HEADERS = ("device.cuh", "causal_conv/window.cuh")
MAX_WIDTH = 16


def why_not(x: Tensor, width: int) -> str | None:
    """A sentence why the CUDA kernels cannot run on x with this many taps; None when they can."""
    if width > MAX_WIDTH:
        return f"its kernels hold at most {MAX_WIDTH} taps, not {width}"
    return nvrtc.why_not(x)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    *,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, E) and the final state (B, W - 1, E), both in x's dtype."""
    batch, length, width = x.shape
    x = nvrtc.neighbouring(x)
    state = None if initial_state is None else initial_state.to(x.dtype).contiguous()
    y, last = x.new_empty(x.shape), x.new_empty(batch, weight.shape[1] - 1, width)
    if x.numel() == 0:
        last.copy_(state) if state is not None else last.zero_()
        return y, last
    problem = _problem(x, weight, activation, resets, x, state)
    kernel, sizes = _forward_kernel(problem, x.stride(1) if length > 1 else width)
    stretches = cuda_plan.forward_stretches(length, sizes["ROWS"])
    blocks = batch * stretches // sizes["SLICES"] * cuda_plan.columns(width, sizes["LANES"])
    with torch.cuda.device(x.device):
        inputs = (x, x.stride(0), nvrtc.floats(weight), nvrtc.floats(bias), state, _bytes(resets))
        kernel((blocks,), sizes["LANES"] * sizes["SLICES"], *inputs, y, last, length, stretches)
    return y, last


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
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and the initial state, each in the dtype of its tensor; None for None.

    Given `dx`, of x's dtype and with neighbouring channels, the gradient of x is written there.
    """
    batch, length, width = x.shape
    taps = weight.shape[1]
    x, dy = nvrtc.neighbouring(x), nvrtc.neighbouring(dy.to(x.dtype))
    state = None if initial_state is None else initial_state.to(x.dtype).contiguous()
    dlast = None if dfinal is None else dfinal.to(x.dtype).contiguous()
    dx = x.new_empty(x.shape) if dx is None else dx
    dstate = None if state is None else torch.empty_like(state)
    rows = cuda_plan.backward_rows(batch, length, width)
    stretches = -(-length // rows)
    partial = torch.empty(batch * stretches, taps + 1, width, device=x.device, dtype=torch.float32)
    if x.numel() > 0:
        problem = _problem(x, weight, activation, resets, x, dy, dx, state, dlast)
        kernel, sizes = _backward_kernel(problem, rows)
        blocks = batch * stretches * cuda_plan.columns(width, sizes["LANES"])
        with torch.cuda.device(x.device):
            parameters = (nvrtc.floats(weight), nvrtc.floats(bias), state, _bytes(resets))
            outputs = (dlast, *_strided(dx), dstate, partial, length, stretches)
            kernel((blocks,), sizes["LANES"], *_strided(x), *parameters, *_strided(dy), *outputs)
    elif dstate is not None:
        dstate.copy_(dlast) if dlast is not None else dstate.zero_()
    dweight = partial[:, :taps].sum(0).t().to(weight.dtype)
    dbias = None if bias is None else partial[:, taps].sum(0).to(bias.dtype)
    dinitial = None if initial_state is None or dstate is None else dstate.to(initial_state.dtype)
    return dx, dweight.contiguous(), dbias, dinitial


def step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str | None) -> Tensor:
    """One position for every row: y (B, E); `state` (B, W - 1, E) is updated in place."""
    if state.dtype != x.dtype or state.stride(-1) != 1:
        updated = state.to(x.dtype).contiguous()
        y = step(updated, x, weight, bias, activation=activation)
        state.copy_(updated)
        return y
    x = nvrtc.neighbouring(x)
    batch, width = x.shape
    y = x.new_empty(x.shape)
    if x.numel() == 0:
        return y
    kernel, sizes = _step_kernel(_problem(x, weight, activation, None, x, state))
    with torch.cuda.device(x.device):
        parameters = (nvrtc.floats(weight), nvrtc.floats(bias))
        blocks = batch * cuda_plan.columns(width, sizes["LANES"])
        kernel((blocks,), sizes["LANES"], *_strided(state), x, x.stride(0), *parameters, y)
    return y


def _problem(x: Tensor, weight: Tensor, activation: str | None, resets: Tensor | None, *rows: Tensor | None) -> Problem:
    channels, taps = weight.shape
    return Problem(x.dtype, channels, taps, activation == "silu", resets is not None, nvrtc.whole_quads(*rows))


Compiled = tuple[nvrtc.Kernel, dict[str, int]]  # a kernel and the macros that it is compiled with


@lru_cache(maxsize=256)
def _forward_kernel(problem: Problem, row_stride: int) -> Compiled:
    return _compiled("forward", problem.forward(row_stride))


@lru_cache(maxsize=256)
def _backward_kernel(problem: Problem, rows: int) -> Compiled:
    return _compiled("backward", problem.backward(rows))


@lru_cache(maxsize=256)
def _step_kernel(problem: Problem) -> Compiled:
    return _compiled("step", problem.step())


def _compiled(name: str, sizes: dict[str, int]) -> Compiled:
    return nvrtc.get((*HEADERS, f"causal_conv/{name}.cu"), f"conv_{name}", **sizes), sizes


def _bytes(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.contiguous()


def _strided(tensor: Tensor) -> tuple[Tensor, int, int]:
    return tensor, tensor.stride(0), tensor.stride(1)
