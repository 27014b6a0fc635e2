"""What every op refuses, whichever backend would run it."""

import pytest
import torch

from mambabyte.ops import causal_conv, cross_entropy, mixer, norm, selective_scan
from mambabyte.ops.backends import NAMES

from . import wrong_tensors
from .wrong_tensors import CASES, Op


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("op", CASES, ids=lambda op: op.__name__)
def test_a_wrong_tensor_is_named(op: Op, backend: str) -> None:
    wrong_tensors.check(op, backend)


def test_a_dimension_that_cannot_be_missing_is_named() -> None:
    scan, conv, layer = CASES[selective_scan], CASES[causal_conv], CASES[mixer]
    with pytest.raises(ValueError, match="selective_scan: A must have at least one state"):
        selective_scan(**scan | {"A": scan["A"][:, :0]})
    with pytest.raises(ValueError, match="causal_conv: weight must have at least one tap"):
        causal_conv(**conv | {"weight": conv["weight"][:, :0]})
    for empty in ("A", "conv_weight"):
        with pytest.raises(ValueError, match="mixer: conv_weight must have at least one tap and A at least one state"):
            mixer(**layer | {empty: layer[empty][:, :0]})
    with pytest.raises(ValueError, match="norm: x must have at least one dimension"):
        norm(torch.tensor(1.0), torch.ones(1))
    with pytest.raises(ValueError, match="cross_entropy: logits must have at least one dimension"):
        cross_entropy(torch.tensor(1.0), torch.tensor(0))


def test_the_norm_is_asked_for_a_dtype_it_can_give() -> None:
    with pytest.raises(ValueError, match=r"norm: out_dtype must be float32, .*, got torch.int32"):
        norm(torch.ones(2, 4), torch.ones(4), out_dtype=torch.int32)
