"""Outputs and gradients of an op for random output gradients, so that two backends can be compared name by name."""

from collections.abc import Callable

import torch
from torch import Tensor

from .scan_cases import in_float64

NUDGE = 1e-6


def same(t: Tensor) -> Tensor:
    """The tensor itself."""
    return t


def outputs_and_gradients(
    op: Callable[..., tuple[Tensor, Tensor]],
    case: dict[str, Tensor],
    *,
    change: Callable[[Tensor], Tensor] = same,
    **options: object,
) -> dict[str, Tensor]:
    """{"y", "state", "d<name>" for every float argument} under fixed random gradients of both outputs.

    `change` is applied to every float argument and output gradient.
    """
    leaves = {k: change(v.clone()).requires_grad_() if v.is_floating_point() else v for k, v in case.items()}
    y, state = op(**leaves, **options)
    g = torch.Generator().manual_seed(1)
    weights = [change(torch.randn(t.shape, generator=g, dtype=torch.float64).to(t)) for t in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    names = [k for k, v in leaves.items() if v.is_floating_point()]
    gradients = torch.autograd.grad(loss, [leaves[k] for k in names], allow_unused=True)
    results = {"y": y.detach(), "state": state.detach()}
    for name, gradient in zip(names, gradients, strict=True):
        results["d" + name] = torch.zeros_like(leaves[name]) if gradient is None else gradient
    return results


def errors(
    ours: dict[str, Tensor], op: Callable[..., tuple[Tensor, Tensor]], case: dict[str, Tensor], **options: object
) -> dict[str, float]:
    """Largest deviation of each output and gradient from the reference in float64, over the size of that result.

    The size is its largest magnitude. A sum of large terms may happen to be small, while rounding is relative to the
    terms: then the size is how much the result changes with small relative changes of what it is made from, per unit
    of these.
    """

    def run(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return outputs_and_gradients(op, in_float64(case), change=change, backend="reference", **options)

    truth, changed = run(same), [run(nudge(seed)) for seed in range(2)]
    return {
        name: largest(value.double() - truth[name])
        / max(largest(truth[name]), *(largest(other[name] - truth[name]) / NUDGE for other in changed), 1e-30)
        for name, value in ours.items()
    }


def nudge(seed: int) -> Callable[[Tensor], Tensor]:
    """A function that makes every element larger or smaller by the fraction NUDGE of itself."""
    g = torch.Generator().manual_seed(seed)
    return lambda t: t * (1 + NUDGE * (torch.randint(2, t.shape, generator=g).to(t) * 2 - 1))


def largest(t: Tensor) -> float:
    """The largest magnitude in a tensor; 0 where it is empty."""
    return float(t.double().abs().max()) if t.numel() else 0.0


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest deviation over the largest magnitude of the truth; 0 for two empty tensors."""
    return largest(value.double() - truth.double()) / max(largest(truth), 1e-30)
