"""The causal convolution in plain torch: what is computed, one tap at a time. Differentiable by autograd."""

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    *,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """y_t = act(bias + sum_w weight_w x_(t-W+1+w)) over the inputs of t's own document; shapes as in the contract."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    past = x.new_zeros(batch, width - 1, channels) if initial_state is None else initial_state.to(x.dtype)
    inputs = torch.cat([past, x], dim=1)
    document = documents(length, width, resets)
    y = x.new_zeros(x.shape, dtype=compute)
    for tap in range(width):
        term = inputs[:, tap : tap + length].to(compute) * weight[:, tap].to(compute)
        if document is not None:
            same = document[:, tap : tap + length] == document[:, width - 1 :]
            term = torch.where(same[..., None], term, 0.0)
        y = y + term
    if bias is not None:
        y = y + bias.to(compute)
    if activation == "silu":
        y = F.silu(y)
    final = inputs[:, length:]
    if document is not None:
        final = torch.where((document[:, length:] == document[:, -1:])[..., None], final, 0.0)
    return y.to(x.dtype), final


def documents(length: int, width: int, resets: Tensor | None) -> Tensor | None:
    """(batch, width - 1 + length) document number of each input, the state's inputs first; None: all the same."""
    if resets is None or length == 0:
        return None
    return F.pad(resets.long(), (width - 1, 0)).cumsum(dim=1)


def step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str | None) -> Tensor:
    """One position; `state` (B,W-1,E) is updated in place."""
    y, final = causal_conv(x[:, None], weight, bias, state, None, activation=activation)
    state.copy_(final)
    return y[:, 0]
