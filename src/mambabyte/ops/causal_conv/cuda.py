"""The causal convolution on an NVIDIA GPU: CUDA C++ in kernels.cu, compiled at run time. Gradients are deterministic.

Inputs may be strided as long as channels are neighbours in memory, anything else is copied.
"""

from functools import lru_cache

import torch
from torch import Tensor

from mambabyte.ops import nvrtc

SOURCES = ("device.cuh", "causal_conv/kernels.cu")
MAX_WIDTH = 16
# Rows a thread walks, rows on their way from memory at once, threads a block; tuned on an H200.
FORWARD, BACKWARD = (32, 16, 256), (128, 4, 128)
# With more taps a quarter of the rows is on the way at once: the taps take the registers.
FEW_TAPS = 8


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
    taps = weight.shape[1]
    x = nvrtc.neighbouring(x)
    state = None if initial_state is None else initial_state.to(x.dtype).contiguous()
    y, last = x.new_empty(x.shape), x.new_empty(batch, taps - 1, width)
    if x.numel() == 0:
        last.copy_(state) if state is not None else last.zero_()
        return y, last
    rows, _, threads = FORWARD
    if width % (4 * threads):  # smaller blocks leave fewer threads without channels: 0.7% at 3,584
        threads //= 2
    kernel = _kernel("conv_forward", threads, x, taps, activation, resets, x, state)
    stretches = -(-length // rows)
    with torch.cuda.device(x.device):
        parameters = (nvrtc.floats(weight), nvrtc.floats(bias), state, _bytes(resets))
        outputs = (y, last, length, width, stretches)
        kernel(_grid(batch * stretches, width, threads), threads, *_strided(x), *parameters, *outputs)
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
    rows, _, threads = BACKWARD
    stretches = -(-length // rows)
    partial = torch.empty(batch * stretches, taps + 1, width, device=x.device, dtype=torch.float32)
    if x.numel() > 0:
        kernel = _kernel("conv_backward", threads, x, taps, activation, resets, x, dy, dx, state, dlast)
        with torch.cuda.device(x.device):
            parameters = (nvrtc.floats(weight), nvrtc.floats(bias), state, _bytes(resets))
            outputs = (dlast, *_strided(dx), dstate, partial, length, width, stretches)
            grid = _grid(batch * stretches, width, threads)
            kernel(grid, threads, *_strided(x), *parameters, *_strided(dy), *outputs)
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
    threads = FORWARD[2]
    kernel = _kernel("conv_step", threads, x, weight.shape[1], activation, None, x, state)
    with torch.cuda.device(x.device):
        parameters = (nvrtc.floats(weight), nvrtc.floats(bias))
        kernel(_grid(batch, width, threads), threads, *_strided(state), x, x.stride(0), *parameters, y, width)
    return y


def _kernel(
    name: str, threads: int, x: Tensor, taps: int, activation: str | None, resets: Tensor | None, *rows: Tensor | None
) -> nvrtc.Kernel:
    aligned = nvrtc.whole_quads(*rows)
    return _compiled(name, threads, nvrtc.IO_CODES[x.dtype], taps, activation == "silu", resets is not None, aligned)


@lru_cache(maxsize=256)
def _compiled(name: str, threads: int, io: int, taps: int, silu: bool, resets: bool, aligned: bool) -> nvrtc.Kernel:
    options = {"IO": io, "WIDTH": taps, "SILU": int(silu), "RESETS": int(resets), "ALIGNED": int(aligned)}
    rows, read, _ = BACKWARD if name == "conv_backward" else FORWARD
    if taps > FEW_TAPS:
        read //= 4
    return nvrtc.get(SOURCES, name, **options, ROWS=rows, READ=read, THREADS=threads)


def _grid(stretches: int, width: int, threads: int) -> tuple[int, int]:
    return stretches, -(-width // (4 * threads))


def _bytes(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.contiguous()


def _strided(tensor: Tensor) -> tuple[Tensor, int, int]:
    return tensor, tensor.stride(0), tensor.stride(1)
