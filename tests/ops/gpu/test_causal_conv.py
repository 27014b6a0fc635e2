"""The CUDA convolution against the reference in float64, at awkward shapes, resets and strides; one position."""

import pytest
import torch
from torch import Tensor

from mambabyte.ops import causal_conv, causal_conv_step
from mambabyte.ops.causal_conv import cuda_plan

from .compare import TOLERANCE, check, outputs_and_gradients

pytestmark = pytest.mark.gpu


def problem(batch: int, length: int, channels: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator("cuda").manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    return {
        "x": normal(batch, length, channels).to(dtype),
        "weight": normal(channels, width),
        "bias": normal(channels),
        "initial_state": normal(batch, width - 1, channels).to(dtype),
    }


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 63, 64, 65, 67, 130])
def test_values_and_gradients(length: int, dtype: torch.dtype) -> None:
    check(causal_conv, problem(2, length, 96, 4, dtype), TOLERANCE[dtype])


def test_long_stretches_backward() -> None:
    assert cuda_plan.backward_rows(300, 300, 20) > cuda_plan.backward_rows(3, 300, 20)
    check(causal_conv, problem(300, 300, 20, 4, torch.bfloat16), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9, 16])
@pytest.mark.parametrize("channels", [3, 6, 514])
def test_widths_and_channels(channels: int, width: int) -> None:
    check(causal_conv, problem(2, 70, channels, width, torch.float32), TOLERANCE[torch.float32])
    check(causal_conv, problem(2, 2, channels, width, torch.float32), TOLERANCE[torch.float32])


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("absent", ["bias", "initial_state"])
def test_without_optional_tensors(absent: str, activation: str | None) -> None:
    case = problem(2, 66, 24, 4, torch.float32)
    del case[absent]
    check(causal_conv, case, TOLERANCE[torch.float32], activation=activation)


@pytest.mark.parametrize("starts", [[0], [1], [63], [64], [65], [128], [0, 1, 2], [61, 62, 64, 66], [129], [127, 128]])
def test_resets(starts: list[int]) -> None:
    case = problem(2, 130, 20, 4, torch.float32)
    resets = torch.zeros(2, 130, dtype=torch.bool, device="cuda")
    resets[1, starts] = True
    check(causal_conv, case | {"resets": resets}, TOLERANCE[torch.float32])


def test_strides() -> None:
    case = problem(2, 70, 32, 4, torch.bfloat16)
    joined = torch.randn(2, 70, 129, device="cuda").bfloat16()
    for x in (joined[..., :32], joined[..., 1:33], joined[..., 64:128:2]):
        check(causal_conv, case | {"x": x}, TOLERANCE[torch.bfloat16])


def test_gradients_are_the_same_bits_in_every_run() -> None:
    case = problem(2, 300, 200, 4, torch.bfloat16)
    weights = [torch.randn(2, 300, 200, device="cuda"), torch.randn(2, 3, 200, device="cuda")]
    first = outputs_and_gradients(causal_conv, case, weights, backend="cuda")
    again = outputs_and_gradients(causal_conv, case, weights, backend="cuda")
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_steps_are_the_convolution_to_the_bit(dtype: torch.dtype) -> None:
    case = problem(5, 6, 50, 4, dtype)
    whole, last = causal_conv(**case, backend="cuda")
    state = case["initial_state"].clone()
    rows = [causal_conv_step(state, x, case["weight"], case["bias"], backend="cuda") for x in case["x"].unbind(1)]
    assert torch.equal(torch.stack(rows, 1), whole)
    assert torch.equal(state, last)
