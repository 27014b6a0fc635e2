"""The mixer on a GPU: torch's matrix products and the kernels of the convolution and the scan of one backend.

Kept for the backward, for each position and channel: xz (two activations) and the scan's states every few rows.
Computed again: the convolution, dt and, inside the scan's backward, the output that out_proj read.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mambabyte.ops.selective_scan.autograd import gradients


class Weights(NamedTuple):
    """The parameters, named as in the contract."""

    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    A: Tensor
    D: Tensor
    dt_bias: Tensor
    out_proj: Tensor


class States(NamedTuple):
    """What was read before, and where documents start."""

    conv: Tensor | None
    scan: Tensor | None
    resets: Tensor | None


class Kernels(NamedTuple):
    """Of one backend: the modules of the convolution and of the scan."""

    conv: ModuleType
    scan: ModuleType

    def why_not(self, xz: Tensor, states: int, width: int) -> str | None:
        """A sentence why they cannot run on xz with so many states and taps; None when they can."""
        return self.scan.why_not(xz, states) or self.conv.why_not(xz, width)


def forward(
    kernels: Kernels, xz: Tensor, weights: Weights, states: States, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, final states, and for the backward what was selected and, with `keep`, the scan's checkpoints."""
    dtype = xz.dtype
    x, z = xz.chunk(2, dim=-1)
    u, conv_last = _convolve(kernels, x, weights, states)
    selected = F.linear(u, weights.x_proj.to(dtype))
    dt, B, C = _select(selected, weights)
    inputs = (u, dt, weights.A, B, C, weights.D, z, weights.dt_bias, states.scan, states.resets)
    y, last, checkpoints = kernels.scan.forward(*inputs, dt_softplus=True, keep=keep)
    return F.linear(y, weights.out_proj.to(dtype)), conv_last, last, selected, checkpoints


def backward(
    kernels: Kernels,
    dout: Tensor,
    dconv_last: Tensor | None,
    dlast: Tensor | None,
    xz: Tensor,
    weights: Weights,
    states: States,
    selected: Tensor,
    checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of xz, the weights in their order, and the two states; None for a state that was None."""
    x, z = xz.chunk(2, dim=-1)
    u, _ = _convolve(kernels, x, weights, states)
    dt, B, C = _select(selected, weights)
    dxz, y = xz.new_empty(xz.shape), xz.new_empty(u.shape)
    dx, dz = dxz.chunk(2, dim=-1)
    dout = dout.to(xz.dtype)
    dy = dout @ weights.out_proj.to(xz.dtype)
    read = (u, dt, weights.A, B, C, weights.D, z, weights.dt_bias, states.scan, states.resets)
    found = gradients(kernels.scan, dy, dlast, *read, checkpoints, dt_softplus=True, dz=dz, y=y)
    du, ddt, dA, dB, dC, dD, _, dbias, dstate = found
    assert du is not None
    assert ddt is not None
    assert dB is not None
    assert dC is not None
    rank = weights.dt_proj.shape[1]
    dselected = torch.cat([ddt @ weights.dt_proj.to(xz.dtype), dB, dC], dim=-1)
    dx_proj = _product(dselected, u).to(weights.x_proj.dtype)
    ddt_proj = _product(ddt, selected[..., :rank]).to(weights.dt_proj.dtype)
    dout_proj = _product(dout, y).to(weights.out_proj.dtype)
    _rows(du).addmm_(_rows(dselected), weights.x_proj.to(xz.dtype))
    inputs = (du, dconv_last, x, weights.conv_weight, weights.conv_bias, states.conv, states.resets)
    _, dconv_weight, dconv_bias, dconv_state = kernels.conv.backward(*inputs, activation="silu", dx=dx)
    return dxz, dconv_weight, dconv_bias, dx_proj, ddt_proj, dA, dD, dbias, dout_proj, dconv_state, dstate


def _convolve(kernels: Kernels, x: Tensor, weights: Weights, states: States) -> tuple[Tensor, Tensor]:
    inputs = (x, weights.conv_weight, weights.conv_bias, states.conv, states.resets)
    return kernels.conv.forward(*inputs, activation="silu")


def _select(selected: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """dt before bias and softplus, B and C."""
    rank, states = weights.dt_proj.shape[1], weights.A.shape[1]
    dt = F.linear(selected[..., :rank], weights.dt_proj.to(selected.dtype))
    return dt, selected[..., rank : rank + states], selected[..., rank + states :]


def _rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, -2)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The gradient of a weight, left^T right over all positions."""
    return _rows(left).t() @ _rows(right)
