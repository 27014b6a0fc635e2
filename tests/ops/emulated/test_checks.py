"""The CUDA kernels are given no tensor that they would read beyond its end."""

import pytest

from tests.ops import wrong_tensors
from tests.ops.wrong_tensors import CASES, Op


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.__name__)
def test_a_wrong_tensor_is_named(op: Op) -> None:
    wrong_tensors.check(op, "cuda")
