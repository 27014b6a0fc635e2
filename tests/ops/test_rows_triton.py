"""What Triton computes row by row, the norm and the cross-entropy, and the mixer over its kernels."""

import pytest
import torch

from mambabyte.ops import mixer, norm
from mambabyte.ops.cross_entropy import cross_entropy
from mambabyte.ops.selective_scan import triton as scan

from .differentiate import errors, outputs_and_gradients, relative_error
from .scan_cases import in_float64
from .test_cross_entropy import expect_nan_out_of_bounds
from .test_mixer import case as mixer_inputs
from .test_norm import expect_float64_output, norm_inputs
from .triton_devices import _runs_here, on, on_each_device  # noqa: F401

pytestmark = on_each_device
FLOAT32 = 4e-6


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("width", [1, 33, 128])
def test_norm(width: int, kind: str, device: str) -> None:
    for present in ({"bias": True, "residual": True}, {"bias": False, "residual": False}):
        case = on(device, norm_inputs(3, width, **present))
        options = {"kind": kind, "eps": 1e-2}
        ours = outputs_and_gradients(norm, case, backend="triton", **options)
        for name, error in errors(ours, norm, case, **options).items():
            assert error < FLOAT32, name


def test_norm_has_the_dtypes_asked_for(device: str) -> None:
    x, weight = torch.randn(2, 3, 8, device=device).bfloat16(), torch.randn(8, device=device)
    # in units of 2^-24: eight squares and their sum, halved by the root; rsqrt.approx 2.2; two products; then one more
    arithmetic = (8 / 2 + 2.2 + 2) * 2**-24
    for asked in (torch.float32, torch.float16, torch.bfloat16):
        y, stream = norm(x.requires_grad_(), weight, out_dtype=asked, backend="triton")
        expected, same = norm(x.double(), weight.double(), out_dtype=torch.float64, backend="reference")
        assert (y.dtype, stream.dtype) == (asked, torch.float32)
        assert torch.equal(stream, same.float())
        assert relative_error(y.detach(), expected.detach()) < torch.finfo(asked).eps / 2 + arithmetic
        (dx,) = torch.autograd.grad(y.float().square().sum(), x)
        (truth,) = torch.autograd.grad(expected.square().sum(), x)
        assert relative_error(dx, truth) < 3 * torch.finfo(torch.bfloat16).eps


def test_norm_in_float64(device: str) -> None:
    expect_float64_output("triton", device)


def test_norm_of_no_rows(device: str) -> None:
    x, weight = torch.randn(0, 8, device=device, requires_grad=True), torch.ones(8, device=device, requires_grad=True)
    norm(x, weight, backend="triton")[0].sum().backward()
    assert x.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 256, 257])
def test_cross_entropy(vocabulary: int, dtype: torch.dtype, device: str) -> None:
    g = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(2, 4, vocabulary, generator=g) * 5).to(device, dtype)
    targets = torch.randint(0, vocabulary, (2, 4), generator=g).to(device)
    targets[1, 2] = -100
    results = {}
    for backend, leaf in (("triton", logits.clone()), ("reference", logits.double())):
        loss, count = cross_entropy(leaf.requires_grad_(), targets, backend=backend)
        assert count == 7
        (loss * 0.3).backward()
        results[backend] = loss.detach(), leaf.grad
    (loss, gradient), (exact, expected) = results["triton"], results["reference"]
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-5)
    assert (gradient - expected).abs().max() < (FLOAT32 if dtype == torch.float32 else torch.finfo(dtype).eps)


def test_a_target_out_of_bounds_is_not_a_number(device: str) -> None:
    expect_nan_out_of_bounds("triton", device)


def test_logits_far_apart_do_not_overflow(device: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], device=device, requires_grad=True)
    loss, _ = cross_entropy(logits, torch.tensor([1, 2], device=device), backend="triton")
    torch.testing.assert_close(loss.item(), 2e4 + torch.tensor(3.0).log().item())
    loss.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("with_states", [True, False])
def test_mixer(with_states: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", 4)
    case = on(device, mixer_inputs(1, 7, 5, 3, 2))
    case["resets"] = torch.arange(7, device=device).expand(1, 7) == 4
    if not with_states:
        del case["conv_state"], case["state"]
    weights = [torch.randn_like(t) for t in mixer(**case, backend="reference")]
    results = {}
    for backend, tensors in (("triton", case), ("reference", in_float64(case))):
        leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in tensors.items()}
        outputs = mixer(**leaves, backend=backend)
        sum((out * w).sum() for out, w in zip(outputs, weights, strict=True)).backward()
        results[backend] = dict(enumerate(outputs)) | {k: v.grad for k, v in leaves.items() if k != "resets"}
    for name, value in results["triton"].items():
        assert relative_error(value.detach(), results["reference"][name].detach()) < 5 * FLOAT32, name
