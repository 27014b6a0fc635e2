"""What only the CPU kernels of the convolution promise: any width and stride, the same bits for any threads."""

import re

import pytest
import torch

from mambabyte.ops import causal_conv, causal_conv_step, native, panels
from mambabyte.ops.causal_conv import cpu
from mambabyte.ops.target import host_target, target_for

from .differentiate import errors, outputs_and_gradients
from .scan_cases import conv_inputs

FLOAT32 = 3e-6


def compare(case: dict[str, torch.Tensor], tolerance: float = FLOAT32, **options: object) -> None:
    ours = outputs_and_gradients(causal_conv, case, backend="cpu", **options)
    for name, error in errors(ours, causal_conv, case, **options).items():
        assert error < tolerance, name


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("length", [1, 2, 5, 63, 64, 65])
def test_widths_and_lengths(width: int, length: int) -> None:
    for resets in (True, False):
        compare(conv_inputs(2, length, 21, width, seed=length, resets=resets), activation="silu")


@pytest.mark.parametrize("initial", [True, False])
def test_without_activation(initial: bool) -> None:
    compare(conv_inputs(2, 40, 150, initial=initial), activation=None)


def test_a_long_one() -> None:
    compare(conv_inputs(1, 500, 40))


@pytest.mark.parametrize(("batch", "length", "channels"), [(0, 5, 8), (2, 0, 8), (2, 5, 0)])
def test_nothing_to_do(batch: int, length: int, channels: int) -> None:
    case = conv_inputs(batch, length, channels)
    ours = outputs_and_gradients(causal_conv, case, backend="cpu")
    assert ours["y"].shape == (batch, length, channels)
    if length == 0:
        assert torch.equal(ours["state"], case["initial_state"])
        assert not ours["dweight"].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    case = conv_inputs(2, 65, 33, dtype=dtype)
    compare(case, tolerance=torch.finfo(dtype).eps)
    y, state = causal_conv(**case, backend="cpu")
    assert (y.dtype, state.dtype) == (dtype, dtype)


def test_strides_do_not_matter() -> None:
    case = conv_inputs(3, 20, 24)
    wide = torch.randn(3, 20, 48)
    wide[..., :24] = case["x"]
    strided = case | {"x": wide[..., :24], "weight": case["weight"].t().contiguous().t()}
    for ours, theirs in zip(causal_conv(**strided, backend="cpu"), causal_conv(**case, backend="cpu"), strict=True):
        assert torch.equal(ours, theirs)


def test_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    case = conv_inputs(3, 70, 200)
    monkeypatch.setattr(native, "SERIAL_NANOSECONDS", 0)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(outputs_and_gradients(causal_conv, case, backend="cpu"))
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(value, results[0][name]), name


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_the_convolution(width: int, dtype: torch.dtype) -> None:
    case = conv_inputs(2, 10, 21, width, dtype=dtype, resets=False)
    y, final = causal_conv(**case, backend="cpu")
    state = case["initial_state"].clone()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for t in range(10):
        y_t = causal_conv_step(state, case["x"][:, t], case["weight"], case["bias"], backend="cpu")
        torch.testing.assert_close(y_t, y[:, t], rtol=tolerance, atol=tolerance)
    assert torch.equal(state, final)


def test_a_cpu_without_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_target()
    portable = target_for(host.cpu, re.sub(r"\+avx512", "-avx512", host.features))
    for module in (cpu, panels):
        monkeypatch.setattr(module, "host_target", lambda: portable)
    cpu._kernel.cache_clear()
    try:
        compare(conv_inputs(2, 65, 37))
    finally:
        cpu._kernel.cache_clear()
