"""The CUDA kernels give every derivative they have by any of torch's routes, and refuse the others."""

import pytest

from tests.ops.test_transforms import expect_first_derivatives, expect_refusals
from tests.ops.wrong_tensors import CASES, Op


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.__name__)
def test_derivatives(op: Op) -> None:
    expect_refusals(op, "cuda")
    expect_first_derivatives(op, "cuda")
