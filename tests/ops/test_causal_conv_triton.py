"""The Triton convolution against the reference in float64, interpreted on a CPU and compiled on a GPU."""

import itertools

import pytest
import torch
from torch import Tensor

from mambabyte.ops import causal_conv, causal_conv_step
from mambabyte.ops.causal_conv import triton

from .differentiate import errors, outputs_and_gradients, relative_error
from .scan_cases import conv_inputs
from .triton_devices import _runs_here, on, on_each_device  # noqa: F401

pytestmark = on_each_device
FLOAT32 = 2e-6


@pytest.fixture(autouse=True)
def short_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few positions reach over several tiles."""
    monkeypatch.setattr(triton, "TIME", 8)


def check(case: dict[str, Tensor], device: str, tolerance: float = FLOAT32, **options: object) -> None:
    case = on(device, case)
    ours = outputs_and_gradients(causal_conv, case, backend="triton", **options)
    for name, error in errors(ours, causal_conv, case, **options).items():
        assert ours[name].dtype == case["x" if name in ("y", "state") else name[1:]].dtype, name
        assert error < tolerance, name


@pytest.mark.parametrize("length", [1, 3, 11])
@pytest.mark.parametrize("width", [1, 2, 4, 5])
def test_lengths_and_widths(width: int, length: int, device: str) -> None:
    check(conv_inputs(1, length, 5, width, seed=length), device)


def test_channels(device: str) -> None:
    check(conv_inputs(1, 3, triton.BLOCK + 2), device)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("absent", ["bias", "initial_state", "resets"])
def test_without_optional_tensors(absent: str, activation: str | None, device: str) -> None:
    case = conv_inputs(1, 6, 5)
    del case[absent]
    check(case, device, activation=activation)


@pytest.mark.parametrize("starts", [[0], [3], [2, 4], [8], [6, 7], list(range(9))])
def test_resets(starts: list[int], device: str) -> None:
    case = conv_inputs(1, 9, 5)
    case["resets"] = torch.zeros(1, 9, dtype=torch.bool)
    case["resets"][0, starts] = True
    check(case, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, device: str) -> None:
    check(conv_inputs(1, 9, 5, dtype=dtype), device, torch.finfo(dtype).eps)


def test_strides(device: str) -> None:
    case = conv_inputs(2, 9, 6)
    wide = torch.randn(2, 9, 12)
    weight = case["weight"].t().contiguous().t()
    for x in (wide[..., 6:], wide[..., ::2]):
        check(case | {"x": x, "weight": weight}, device)


def test_split_law(device: str) -> None:
    case = on(device, conv_inputs(1, 9, 5))

    def in_pieces(x, weight, bias, initial_state, resets):  # type: ignore[no-untyped-def]
        state, ys = initial_state, []
        for lo, hi in itertools.pairwise([0, 1, 3, 9]):
            options = {"initial_state": state, "resets": resets[:, lo:hi], "backend": "triton"}
            y, state = causal_conv(x[:, lo:hi], weight, bias, **options)
            ys.append(y)
        return torch.cat(ys, 1), state

    whole = outputs_and_gradients(causal_conv, case, backend="triton")
    for name, value in outputs_and_gradients(in_pieces, case).items():
        assert relative_error(value, whole[name]) < FLOAT32, name


@pytest.mark.parametrize(("batch", "length", "channels"), [(0, 5, 4), (2, 0, 4), (2, 5, 0)])
def test_nothing_to_do(batch: int, length: int, channels: int, device: str) -> None:
    case = on(device, conv_inputs(batch, length, channels))
    ours = outputs_and_gradients(causal_conv, case, backend="triton")
    assert ours["y"].shape == (batch, length, channels)
    if length == 0:
        assert torch.equal(ours["state"], case["initial_state"])
        assert not ours["dweight"].any()


@pytest.mark.parametrize("width", [1, 2, 4])
def test_steps_match_the_convolution(width: int, device: str) -> None:
    case = on(device, conv_inputs(2, 4, 5, width, resets=False))
    whole, last = causal_conv(**case, backend="triton")
    state = case["initial_state"].transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
    for t in range(4):
        y = causal_conv_step(state, case["x"][:, t], case["weight"], case["bias"], backend="triton")
        assert relative_error(y, whole[:, t]) < FLOAT32
    assert torch.equal(state, last)
