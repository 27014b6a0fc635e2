"""The selective scan in plain torch: what is computed, one position at a time.

Mamba (https://arxiv.org/abs/2312.00752), algorithm 2 with the Euler discretisation of B that its code uses.
Differentiable by autograd in every tensor. float64 inputs are computed in float64, anything else in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t;  y_t = (C_t . h_t + D x_t) silu(z_t); shapes as in the contract.

    A reset at t drops h_(t-1) before it is used.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, _, channels = x.shape
    h = initial_state if initial_state is not None else x.new_zeros(batch, channels, A.shape[1], dtype=compute)
    h = h.to(compute)
    steps = zip(*(t.to(compute).unbind(1) for t in (x, dt, B, C)), strict=True)
    keeps = (~resets).unbind(1) if resets is not None else None
    ys = []
    for t, (x_BE, dt_BE, B_BN, C_BN) in enumerate(steps):
        if keeps is not None:
            h = torch.where(keeps[t][:, None, None], h, 0.0)
        h, y_BE = recur(h, x_BE, dt_BE, A.to(compute), B_BN, C_BN, D, dt_bias, dt_softplus=dt_softplus)
        ys.append(y_BE)
    y = torch.stack(ys, dim=1) if ys else x.to(compute)
    if z is not None:
        y = y * F.silu(z.to(compute))
    return y.to(x.dtype), h


def recur(
    h: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    *,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """One position of the recurrence, before the gate: (h (B,E,N), x (B,E), ...) -> (new h, y (B,E)), in h's dtype."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(h.dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    h = torch.exp(dt[..., None] * A) * h + (dt * x)[..., None] * B[:, None, :]
    y = (h * C[:, None, :]).sum(-1)
    return h, y if D is None else y + D.to(h.dtype) * x


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
    """One position of the scan; `state` (B,E,N) is updated in place."""
    compute = state.dtype
    x_, dt, A, B, C = (t.to(compute) for t in (x, dt, A, B, C))
    h, y = recur(state, x_, dt, A, B, C, D, dt_bias, dt_softplus=dt_softplus)
    state.copy_(h)
    if z is not None:
        y = y * F.silu(z.to(compute))
    return y.to(x.dtype)
