"""The CUDA norm, thread by thread on a CPU, against the reference in float64."""

import pytest
import torch

from mambabyte.ops import norm
from tests.ops.gpu.compare import TOLERANCE, check


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(("width", "dtype"), [(6, torch.float32), (132, torch.bfloat16), (600, torch.float16)], ids=str)
def test_values_and_gradients(width: int, dtype: torch.dtype, kind: str) -> None:
    case = {
        "x": torch.randn(3, 3, width).to(dtype) + 0.5,
        "weight": torch.randn(width),
        "bias": torch.randn(width),
        "residual": torch.randn(3, 3, width),
    }
    check(norm, case, 2 * TOLERANCE[dtype], kind=kind, eps=1e-3)
    del case["bias"], case["residual"]
    check(norm, case, 2 * TOLERANCE[dtype], kind=kind, eps=1e-3)
