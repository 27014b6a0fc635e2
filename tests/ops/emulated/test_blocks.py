"""The CUDA kernels where a launch has several warps a block and several blocks of channels, and tensors have gaps."""

import pytest
import torch

from mambabyte.ops import causal_conv, causal_conv_step, norm, selective_scan, selective_scan_step
from mambabyte.ops.causal_conv import cuda_plan
from mambabyte.ops.norm import cuda as norm_kernels
from tests.ops.gpu.compare import TOLERANCE, check
from tests.ops.scan_cases import conv_inputs, scan_inputs

FLOAT32 = TOLERANCE[torch.float32]


@pytest.mark.parametrize(("length", "channels", "states"), [(34, 10, 64), (5, 12, 3)])
def test_scan(length: int, channels: int, states: int) -> None:
    """Two blocks of two warps of four channels, through two chunks; and a whole channel in every lane."""
    check(selective_scan, scan_inputs(1, length, channels, states), FLOAT32)


def test_softplus_bends_until_20() -> None:
    case = scan_inputs(1, 3, 4, 5, resets=False)
    case |= {"dt": case["dt"] * 0.1 + 8.7, "dt_bias": case["dt_bias"] * 0.1, "A": case["A"] * 0.01}
    check(selective_scan, case, FLOAT32)


def test_steps_where_states_have_gaps() -> None:
    case = {k: t[:, 0] if t.ndim == 3 and k != "initial_state" else t for k, t in scan_inputs(3, 1, 6, 5).items()}
    before, _ = case.pop("initial_state"), case.pop("resets")
    results = []
    for backend, dtype in (("cuda", torch.float32), ("reference", torch.float64)):
        state = torch.full((3, 8, 5), torch.nan, dtype=dtype)
        state[:, :6] = before
        results += [(selective_scan_step(state[:, :6], **case, backend=backend), state[:, :6])]
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-5, atol=1e-5)


def test_convolution_of_many_channels() -> None:
    check(causal_conv, conv_inputs(1, 3, 516), FLOAT32)


@pytest.mark.parametrize("length", [1, 7, 8, 15, 24, 32, 33])
def test_convolution_whose_stretches_end_with_the_sequence_or_not(length: int) -> None:
    """Eight rows a stretch, four stretches a block, and one more for the final state."""
    check(causal_conv, conv_inputs(2, length, 8, dtype=torch.bfloat16), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("taps", [1, 3, 9, 16])
def test_convolution_of_few_and_many_taps(taps: int) -> None:
    for length in (2, 21):
        check(causal_conv, conv_inputs(1, length, 8, taps), FLOAT32)


@pytest.mark.parametrize("length", [256, 258, 300])
def test_convolution_of_long_stretches_backward(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large problems take."""
    monkeypatch.setattr(cuda_plan, "ENOUGH_BLOCKS", 1)
    assert cuda_plan.backward_rows(1, length, 4) == 256
    check(causal_conv, conv_inputs(1, length, 4), FLOAT32)


def test_convolution_where_a_document_ends_before_a_stretch_of_time() -> None:
    case = conv_inputs(1, 131, 4)
    case["resets"] = torch.zeros(1, 131, dtype=torch.bool)
    case["resets"][0, 126] = True
    check(causal_conv, case, FLOAT32)


def test_convolution_of_quads_that_lie_askew() -> None:
    case = conv_inputs(2, 5, 8)
    case["x"] = torch.randn(2, 5, 32)[..., 1:9]
    check(causal_conv, case, FLOAT32)


def test_convolution_steps_where_states_have_gaps() -> None:
    case = conv_inputs(3, 1, 8, resets=False)
    x, before = case.pop("x")[:, 0], case.pop("initial_state")
    results = []
    for backend in ("cuda", "reference"):
        state = torch.full((3, 5, 8), torch.nan)
        state[:, 1:4] = before
        results += [(causal_conv_step(state[:, 1:4], x, **case, backend=backend), state[:, 1:4])]
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_norm_whose_blocks_take_several_rounds_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_kernels, "BACKWARD_BLOCKS", 1)
    case = {"x": torch.randn(9, 6), "weight": torch.randn(6), "bias": torch.randn(6)}
    check(norm, case, 2 * FLOAT32, kind="layer", eps=1e-3)
