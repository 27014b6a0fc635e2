"""The norm's contract: every backend against the reference in float64, rows as if alone, dtypes, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambabyte.ops import norm

from .differentiate import errors, outputs_and_gradients, relative_error
from .scan_cases import in_float64

FLOAT32 = 2e-6
BACKENDS = ("reference", "cpu")


def norm_inputs(rows: int, width: int, *, bias: bool = True, residual: bool = True, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    case = {"x": torch.randn(2, rows, width, generator=g) + 0.5, "weight": torch.randn(width, generator=g)}
    if bias:
        case["bias"] = torch.randn(width, generator=g)
    if residual:
        case["residual"] = torch.randn(2, rows, width, generator=g)
    return case


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_reference_adds_then_normalises(kind: str) -> None:
    case = in_float64(norm_inputs(3, 8))
    y, stream = norm(**case, kind=kind, eps=1e-5, backend="reference")
    total = case["x"] + case["residual"]
    centred = total - total.mean(-1, keepdim=True) if kind == "layer" else total
    scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(stream, total)
    torch.testing.assert_close(y, scaled * case["weight"] + case["bias"])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 70),
    width=st.integers(4, 70),
    kind=st.sampled_from(["rms", "layer"]),
    bias=st.booleans(),
    residual=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_matches_float64(backend, rows, width, kind, bias, residual, seed) -> None:  # type: ignore[no-untyped-def]
    case = norm_inputs(rows, width, bias=bias, residual=residual, seed=seed)
    options = {"kind": kind, "eps": 1e-2}
    ours = outputs_and_gradients(norm, case, backend=backend, **options)
    for name, error in errors(ours, norm, case, **options).items():
        assert error < 10 * FLOAT32, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_output_is_used(backend: str) -> None:
    case = norm_inputs(5, 33)
    x = case["x"].requires_grad_()
    y, _ = norm(**case, backend=backend)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    exact = in_float64(case) | {"x": case["x"].detach().double().requires_grad_()}
    (truth,) = torch.autograd.grad(norm(**exact, backend="reference")[0].square().sum(), exact["x"])
    assert relative_error(dx, truth) < 10 * FLOAT32


def expect_float64_output(backend: str, device: str = "cpu") -> None:
    """Assert that y and its gradient may be float64 whatever x is."""
    x, weight = torch.randn(3, 8, device=device).bfloat16().requires_grad_(), torch.rand(8, device=device)
    y, stream = norm(x, weight, out_dtype=torch.float64, backend=backend)
    plain, same = norm(x.float(), weight, backend=backend)
    assert (y.dtype, stream.dtype) == (torch.float64, torch.float32)
    assert torch.equal(y.float(), plain)
    assert torch.equal(stream, same)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    assert relative_error(dx, expected) < torch.finfo(torch.bfloat16).eps


def test_a_row_is_computed_as_if_alone() -> None:
    case = norm_inputs(70, 40)
    y, _ = norm(**case, backend="cpu")
    alone, _ = norm(case["x"][1, 66], case["weight"], case["bias"], residual=case["residual"][1, 66], backend="cpu")
    assert torch.equal(y[1, 66], alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stream_is_float32_and_the_output_as_asked(backend: str) -> None:
    x = torch.randn(2, 8).bfloat16()
    y, stream = norm(x, torch.ones(8), out_dtype=torch.float16, backend=backend)
    assert stream.dtype == torch.float32
    assert torch.equal(stream, x.float())
    assert y.dtype == torch.float16
    y, _ = norm(x, torch.ones(8), backend=backend)
    assert y.dtype == torch.bfloat16
    expect_float64_output(backend)
    exact, _ = norm(x.double(), torch.ones(8), backend="reference")
    assert relative_error(y, exact) < torch.finfo(torch.bfloat16).eps


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="kind='batch' is not one of"):
        norm(torch.ones(2, 4), torch.ones(4), kind="batch")
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), expected \(4,\)"):
        norm(torch.ones(2, 4), torch.ones(3))
