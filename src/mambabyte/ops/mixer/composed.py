"""The mixer as the ops it is made of. Differentiable by autograd."""

from torch import Tensor
from torch.nn import functional as F

from mambabyte.ops.causal_conv import causal_conv
from mambabyte.ops.selective_scan import selective_scan


def mixer(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    out_proj: Tensor,
    conv_state: Tensor | None,
    state: Tensor | None,
    resets: Tensor | None,
    *,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes as in the contract; `backend` is that of the convolution and the scan."""
    x, z = xz.chunk(2, dim=-1)
    x, conv_state = causal_conv(x, conv_weight, conv_bias, initial_state=conv_state, resets=resets, backend=backend)
    rank, states = dt_proj.shape[1], A.shape[1]
    selected = F.linear(x, x_proj.to(x.dtype))
    low, B, C = selected[..., :rank], selected[..., rank : rank + states], selected[..., rank + states :]
    dt = F.linear(low, dt_proj.to(x.dtype))
    y, state = selective_scan(
        x, dt, A, B, C, D, z, dt_bias=dt_bias, initial_state=state, resets=resets, backend=backend
    )
    return F.linear(y, out_proj.to(x.dtype)), conv_state, state
