"""Which initial value? Every weight's answer, in one place.

Sources: the Mamba paper, https://arxiv.org/abs/2312.00752, section 3.6 and its released code; S4D-real,
https://arxiv.org/abs/2206.11893.

| weight | initial value |
|---|---|
| embedding | N(0, 0.02) |
| head (when it has its own weight) | U(+-1 / sqrt(width)) |
| in_proj, x_proj | U(+-1 / sqrt(fan in)) |
| dt_proj weight | U(+-rank^-1/2) |
| dt bias | softplus^-1 of a log-uniform step in [1e-3, 0.1], floored at 1e-4 |
| A_log | log(1..N) in every channel |
| D | 1 |
| conv weight and bias | U(+-1 / sqrt(taps)) |
| out_proj | U(+-1 / sqrt(fan in)) / sqrt(number of layers) |
| in_proj and out_proj bias (when there are any) | 0 |
| norm weight, bias | 1, 0 |

On the meta device there are shapes and no values: a model is built there to know what a folder must hold, and
arithmetic on it would import the compiler, seconds of every command.
"""

import math

import torch
from torch import Tensor

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 0.1, 1e-4
EMBEDDING_STD = 0.02


def uniform_fan_in(weight: Tensor, fan_in: int | None = None, gain: float = 1.0) -> None:
    """Fill with U(+-gain / sqrt(fan in)); the fan in is the last dimension unless given."""
    bound = gain / math.sqrt(fan_in or weight.shape[-1])
    with torch.no_grad():
        weight.uniform_(-bound, bound)


def embedding(weight: Tensor) -> None:
    """Fill with N(0, 0.02)."""
    if weight.is_meta:
        return
    with torch.no_grad():
        weight.normal_(0.0, EMBEDDING_STD)


def zero(bias: Tensor) -> None:
    """Fill with 0."""
    if bias.is_meta:
        return
    with torch.no_grad():
        bias.zero_()


def decay(d_inner: int, d_state: int) -> Tensor:
    """A_log (channels, states) float32 with A = -exp(A_log) = -1, -2, ..., -N in every channel (S4D-real)."""
    A_log = torch.empty(d_inner, d_state)
    if A_log.is_meta:
        return A_log
    return A_log.copy_(torch.log(torch.arange(1, d_state + 1, dtype=torch.float32)))


def step_bias(d_inner: int) -> Tensor:
    """dt bias (channels,) float32 such that softplus(bias) is log-uniform in [1e-3, 0.1]."""
    bias = torch.empty(d_inner)
    if bias.is_meta:
        return bias
    low, high = math.log(DT_MIN), math.log(DT_MAX)
    dt = torch.exp(torch.rand(d_inner) * (high - low) + low).clamp(min=DT_FLOOR)
    return bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
