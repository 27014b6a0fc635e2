"""The CUDA cross-entropy, thread by thread on a CPU, against the reference in float64."""

import pytest
import torch

from mambabyte.ops import cross_entropy
from tests.ops.gpu.compare import TOLERANCE
from tests.ops.test_cross_entropy import expect_nan_out_of_bounds


@pytest.mark.parametrize(("vocabulary", "dtype"), [(3, torch.float32), (256, torch.bfloat16)], ids=str)
def test_loss_and_gradient(vocabulary: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(3, 7, vocabulary) * 5).to(dtype)
    targets = torch.randint(0, vocabulary, (3, 7))
    targets[1, 2:5] = -100
    results = {}
    for backend, leaf in (("cuda", logits.detach()), ("reference", logits.double())):
        loss, count = cross_entropy(leaf.requires_grad_(), targets, backend=backend)
        assert count == 3 * 7 - 3
        (loss * 0.3).backward()
        results[backend] = loss.detach(), leaf.grad
    (loss, gradient), (exact, expected) = results["cuda"], results["reference"]
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-5)
    assert (gradient.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm() + 1e-6


def test_a_target_out_of_bounds_is_not_a_number() -> None:
    expect_nan_out_of_bounds("cuda")


def test_bytes_as_targets() -> None:
    logits, targets = torch.zeros(4, 256), torch.tensor([1, 2, 3, 156], dtype=torch.uint8)
    loss, count = cross_entropy(logits, targets, backend="cuda")
    assert count == 4
    torch.testing.assert_close(loss, 4 * torch.tensor(256.0).log())
