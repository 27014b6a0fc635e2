"""The CUDA convolution, thread by thread on a CPU, against the reference in float64."""

import pytest
import torch

from mambabyte.ops import causal_conv, causal_conv_step
from tests.ops.gpu.compare import TOLERANCE, check
from tests.ops.scan_cases import conv_inputs


@pytest.mark.parametrize(("length", "channels", "dtype"), [(70, 12, torch.bfloat16), (131, 6, torch.float32)], ids=str)
def test_values_and_gradients(length: int, channels: int, dtype: torch.dtype) -> None:
    check(causal_conv, conv_inputs(2, length, channels, dtype=dtype), TOLERANCE[dtype])


def test_strides_without_optional_tensors() -> None:
    case = conv_inputs(2, 66, 8, resets=False, initial=False)
    del case["bias"]
    case["x"] = torch.randn(2, 66, 33)[..., 1:9]
    check(causal_conv, case, TOLERANCE[torch.float32], activation=None)


def test_steps_are_the_convolution_to_the_bit() -> None:
    case = conv_inputs(3, 6, 10, resets=False)
    whole, last = causal_conv(**case, backend="cuda")
    state = case["initial_state"].clone()
    rows = [causal_conv_step(state, x, case["weight"], case["bias"], backend="cuda") for x in case["x"].unbind(1)]
    assert torch.equal(torch.stack(rows, 1), whole)
    assert torch.equal(state, last)
