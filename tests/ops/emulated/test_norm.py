"""The CUDA norm, thread by thread on a CPU, against the reference in float64."""

import pytest
import torch

from mambabyte.ops import norm
from tests.ops.gpu.compare import TOLERANCE, check
from tests.ops.test_norm import expect_float64_output


@pytest.mark.parametrize(
    ("kind", "width", "dtype"),
    [("layer", 6, torch.float32), ("rms", 132, torch.bfloat16), ("layer", 600, torch.float16)],
    ids=str,
)
def test_values_and_gradients(kind: str, width: int, dtype: torch.dtype) -> None:
    case = {"x": torch.randn(3, 3, width).to(dtype) + 0.5, "weight": torch.randn(width)}
    if kind == "layer":
        case |= {"bias": torch.randn(width), "residual": torch.randn(3, 3, width)}
    check(norm, case, 2 * TOLERANCE[dtype], kind=kind, eps=1e-3)


def test_the_output_in_float64() -> None:
    expect_float64_output("cuda")
