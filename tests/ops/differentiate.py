"""Outputs and gradients of an op for random output gradients, so that two backends can be compared name by name."""

from collections.abc import Callable

import torch
from torch import Tensor


def outputs_and_gradients(
    op: Callable[..., tuple[Tensor, Tensor]], case: dict[str, Tensor], *, seed: int = 0, **options: object
) -> dict[str, Tensor]:
    """{"y", "state", "d<name>" for every float argument} under fixed random gradients of both outputs."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in case.items()}
    y, state = op(**leaves, **options)
    g = torch.Generator().manual_seed(seed + 1)
    weights = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    names = [k for k, v in leaves.items() if v.is_floating_point()]
    gradients = torch.autograd.grad(loss, [leaves[k] for k in names], allow_unused=True)
    results = {"y": y.detach(), "state": state.detach()}
    for name, gradient in zip(names, gradients, strict=True):
        results["d" + name] = torch.zeros_like(leaves[name]) if gradient is None else gradient
    return results


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest deviation over the largest magnitude of the truth; 0 for two empty tensors."""
    if truth.numel() == 0:
        return 0.0
    scale = truth.double().abs().max().clamp(min=1e-30)
    return float((value.double() - truth.double()).abs().max() / scale)
