"""The CUDA kernels, and torch's matrix products between them, compute what they compute without autocast."""

import pytest

from tests.ops.test_autocast import expect_same
from tests.ops.wrong_tensors import CASES, Op


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.__name__)
def test_nothing_changes(op: Op) -> None:
    expect_same(op, "cuda", backward=True)
