"""The CUDA cross-entropy against the reference in float64."""

import pytest
import torch

from mambabyte.ops.cross_entropy import cross_entropy

from ..test_cross_entropy import expect_nan_out_of_bounds
from .compare import TOLERANCE

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 3, 256, 257, 320, 4096])
def test_loss_and_gradient(vocabulary: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(3, 37, vocabulary, device="cuda") * 5).to(dtype)
    targets = torch.randint(0, vocabulary, (3, 37), device="cuda")
    targets[1, 5:9] = -100
    results = {}
    for backend, leaf in (("cuda", logits.detach()), ("reference", logits.double())):
        loss, count = cross_entropy(leaf.requires_grad_(), targets, backend=backend)
        assert count == 3 * 37 - 4
        (loss * 0.3).backward()
        results[backend] = loss.detach(), leaf.grad
    (loss, gradient), (exact, expected) = results["cuda"], results["reference"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-5)
    assert gradient.dtype == dtype
    assert (gradient.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm() + 1e-6


def test_logits_far_apart_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], device="cuda")
    loss, _ = cross_entropy(logits, torch.tensor([1, 2], device="cuda"), backend="cuda")
    torch.testing.assert_close(loss.item(), 2e4 + torch.tensor(3.0).log().item())


def test_a_target_out_of_bounds_is_not_a_number() -> None:
    expect_nan_out_of_bounds("cuda", "cuda")
