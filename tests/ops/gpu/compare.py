"""Compare a GPU kernel with the reference in float64: outputs and every gradient under random output gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

# Largest ratio of the norm of an error to the norm of the exact value. 16-bit results are rounded once: 2^-9 and 2^-12.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}

Op = Callable[..., tuple[Tensor, Tensor]]


def outputs_and_gradients(
    op: Op, case: dict[str, Tensor], weights: list[Tensor], **options: object
) -> dict[str, Tensor]:
    """{"0", "1" for the outputs, "d<name>" for every float argument} of <outputs, weights>."""
    leaves = {k: v.detach().requires_grad_() if v.is_floating_point() else v for k, v in case.items()}
    outputs = op(**leaves, **options)
    sum((out * w.to(out.dtype)).sum() for out, w in zip(outputs, weights, strict=True)).backward()
    results = {str(i): out.detach() for i, out in enumerate(outputs)}
    return results | {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.is_floating_point()}


def check(op: Op, case: dict[str, Tensor], tolerance: float, *, backend: str = "cuda", **options: object) -> None:
    """Assert that the kernel's relative errors are below the tolerance, name by name."""
    exact = {k: v.double() if v.is_floating_point() else v for k, v in case.items()}
    shapes = [out.shape for out in op(**case, **options, backend="reference")]
    device = next(iter(case.values())).device
    weights = [torch.randn(shape, device=device).bfloat16().float() for shape in shapes]
    ours = outputs_and_gradients(op, case, weights, **options, backend=backend)
    expected = outputs_and_gradients(op, exact, weights, **options, backend="reference")
    for name, value in expected.items():
        assert ours[name].shape == value.shape, name
        error = ((ours[name].double() - value).norm() / value.norm().clamp_min(1e-12)).item()
        assert error <= tolerance, f"{name}: relative error {error:.1e}"
