"""The causal convolution in Triton: the portable route to a GPU. Gradients are deterministic.

Inputs may have any strides; one whose channels are not neighbours in memory is copied.
"""

import torch
from torch import Tensor

from mambabyte.ops import triton_support
from mambabyte.ops.triton_support import flags, floats, rows

MAX_WIDTH = 16
# Rows and channels of a program.
TIME, BLOCK = 16, 128


def why_not(x: Tensor, width: int) -> str | None:
    """A sentence why the Triton kernels cannot run on x with this many taps; None when they can."""
    if width > MAX_WIDTH:
        return f"its kernels hold at most {MAX_WIDTH} taps, not {width}"
    return triton_support.why_not(x)


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
    from mambabyte.ops.causal_conv import triton_kernels

    batch, length, channels = x.shape
    width = weight.shape[1]
    past = None if initial_state is None else initial_state.to(x.dtype).contiguous()
    y, last = x.new_empty(x.shape), x.new_empty(batch, width - 1, channels)
    if x.numel() == 0:
        last.copy_(past) if past is not None else last.zero_()
        return y, last
    inputs, resets, sizes = rows(x), flags(resets), (length, channels)
    parameters = floats(weight), None if bias is None else floats(bias)
    blocks = batch * -(-channels // BLOCK)
    with triton_support.on(x.device):
        triton_kernels.forward[(blocks * -(-length // TIME),)](
            *(inputs, past, *parameters, resets, y, *sizes), **_options(width, activation), TIME=TIME
        )
        if width > 1:
            triton_kernels.remember[(blocks,)](inputs, past, resets, last, *sizes, W=width, BLOCK=BLOCK)
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

    Given `dx`, with neighbouring channels, the gradient of x is written there.
    """
    from mambabyte.ops.causal_conv import triton_kernels

    batch, length, channels = x.shape
    width = weight.shape[1]
    past = None if initial_state is None else initial_state.to(x.dtype).contiguous()
    dlast = None if dfinal is None else dfinal.contiguous()
    dx = x.new_empty(x.shape) if dx is None else dx
    dpast = None if initial_state is None else torch.empty_like(initial_state, memory_format=torch.contiguous_format)
    stretches = batch * -(-(length + width - 1) // TIME) if x.numel() else 0
    partial = torch.empty(stretches, width + 1, channels, device=x.device, dtype=torch.float32)
    if stretches:
        parameters = floats(weight), None if bias is None else floats(bias)
        outputs = rows(dy), dlast, rows(dx), dpast, partial
        with triton_support.on(x.device):
            triton_kernels.backward[(stretches * -(-channels // BLOCK),)](
                *(rows(x), past, *parameters, flags(resets), *outputs, length, channels),
                **_options(width, activation),
                TIME=TIME,
            )
    elif dpast is not None:
        dpast.copy_(dlast) if dlast is not None else dpast.zero_()
    sums = partial.sum(0)
    dweight = sums[:width].t().to(weight.dtype, copy=True, memory_format=torch.contiguous_format)
    return dx, dweight, None if bias is None else sums[width].to(bias.dtype, copy=True), dpast


def step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str | None) -> Tensor:
    """One position for every row: y (B, E); `state` (B, W - 1, E) is updated in place."""
    from mambabyte.ops.causal_conv import triton_kernels

    batch, channels = x.shape
    y = x.new_empty(x.shape)
    if x.numel() == 0:
        return y
    parameters = floats(weight), None if bias is None else floats(bias)
    with triton_support.on(x.device):
        triton_kernels.step[(batch * -(-channels // BLOCK),)](
            (state, *state.stride()), rows(x), *parameters, y, channels, **_options(weight.shape[1], activation)
        )
    return y


def _options(width: int, activation: str | None) -> dict[str, int]:
    return {"W": width, "BLOCK": BLOCK, "SILU": activation == "silu"}
