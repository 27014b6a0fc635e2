"""The cross-entropy's contract on a CPU: its reference, what is ignored, and its errors."""

import pytest
import torch

from mambabyte.ops.cross_entropy import cross_entropy


def test_reference_is_minus_the_log_probability_of_the_targets_that_count() -> None:
    logits, targets = torch.randn(2, 5, 256, dtype=torch.float64), torch.randint(0, 256, (2, 5))
    targets[0, 3] = 300
    loss, count = cross_entropy(logits, targets, ignore_index=300)
    chosen = [logits[b, t].log_softmax(-1)[targets[b, t]] for b in range(2) for t in range(5) if (b, t) != (0, 3)]
    torch.testing.assert_close(loss, -torch.stack(chosen).sum())
    assert count == 9


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, targets = torch.randn(4000, 256).bfloat16().requires_grad_(), torch.randint(0, 256, (4000,))
    loss, _ = cross_entropy(logits, targets)
    loss.backward()
    exact, _ = cross_entropy(logits.detach().double(), targets)
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


def test_targets_of_every_integer_type_count_alike() -> None:
    logits, targets = torch.randn(256, 256), torch.arange(256)
    expected = cross_entropy(logits, targets)
    for dtype in (torch.uint8, torch.int16, torch.uint16, torch.int32):
        assert cross_entropy(logits, targets.to(dtype)) == expected


@pytest.mark.parametrize("target", [-1, 256])
def test_a_target_out_of_bounds_is_an_error(target: int) -> None:
    with pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
        cross_entropy(torch.randn(2, 256), torch.tensor([3, target]))


def expect_nan_out_of_bounds(backend: str, device: str = "cpu") -> None:
    """Assert that the targets out of bounds have NaN as loss and gradients, and no other row has."""
    targets = torch.tensor([0, 6, -1, 7, 1 << 40, -(1 << 40), -100], device=device)
    for row, target in enumerate(targets):
        logits = torch.randn(7, 7, device=device, requires_grad=True)
        only = torch.full_like(targets, 3)
        only[row] = target
        loss, _ = cross_entropy(logits, only, backend=backend)
        loss.backward()
        assert logits.grad is not None
        wrong = torch.zeros(7, dtype=torch.bool)
        wrong[row] = 2 <= row < 6
        assert loss.isnan() == wrong.any()
        assert torch.equal(logits.grad.isnan().cpu(), wrong[:, None].expand(7, 7))


def test_wrong_targets_are_named() -> None:
    with pytest.raises(ValueError, match=r"targets has shape \(3,\), expected \(4,\)"):
        cross_entropy(torch.ones(4, 256), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="targets must be integers"):
        cross_entropy(torch.ones(4, 256), torch.zeros(4))
