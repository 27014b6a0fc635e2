"""The CUDA norm against the reference in float64."""

import pytest
import torch

from mambabyte.ops import norm

from ..test_norm import expect_float64_output
from .compare import TOLERANCE, check

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("width", [1, 6, 128, 512, 1000, 1024, 1792, 4096, 16384])
def test_values_and_gradients(width: int, kind: str) -> None:
    for dtype, tolerance in TOLERANCE.items():
        case = {
            "x": torch.randn(3, 7, width, device="cuda").to(dtype) + 0.5,
            "weight": torch.randn(width, device="cuda"),
            "bias": torch.randn(width, device="cuda"),
            "residual": torch.randn(3, 7, width, device="cuda"),
        }
        check(norm, case, 2 * tolerance, kind=kind, eps=1e-3)
        del case["bias"]
        check(norm, case, 2 * tolerance, kind=kind, eps=1e-3)
        del case["residual"]
        check(norm, case, 2 * tolerance, kind=kind, eps=1e-3)


@pytest.mark.parametrize("rows", [1, 5, 3000])
def test_any_number_of_rows(rows: int) -> None:
    case = {"x": torch.randn(rows, 64, device="cuda"), "weight": torch.randn(64, device="cuda")}
    check(norm, case, 2 * TOLERANCE[torch.float32])


def test_the_stream_is_float32_and_y_has_the_dtype_asked_for() -> None:
    x, weight = torch.randn(4, 64, device="cuda").bfloat16(), torch.randn(64, device="cuda")
    for asked in (torch.float32, torch.float16, torch.bfloat16):
        y, stream = norm(x, weight, out_dtype=asked, backend="cuda")
        expected, same = norm(x, weight, out_dtype=asked, backend="reference")
        assert (y.dtype, stream.dtype) == (asked, torch.float32)
        assert torch.equal(stream, same)
        torch.testing.assert_close(y, expected)


def test_the_output_in_float64() -> None:
    expect_float64_output("cuda", "cuda")
