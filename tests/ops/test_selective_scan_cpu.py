"""What only the CPU kernels of the scan promise: any shape and stride, the same bits for any threads, other CPUs."""

import re

import pytest
import torch

from mambabyte.ops import native, panels, selective_scan, selective_scan_step
from mambabyte.ops.selective_scan import cpu
from mambabyte.ops.target import host_target, target_for

from .differentiate import errors, outputs_and_gradients, relative_error
from .scan_cases import in_float64, scan_inputs

# the worst measured error is 6e-6, of a single channel whose dD is a cancelling sum of 1000 terms; most are below 1e-6
FLOAT32 = 1e-5


def compare(case: dict[str, torch.Tensor], tolerance: float = FLOAT32, **options: object) -> None:
    ours = outputs_and_gradients(selective_scan, case, backend="cpu", **options)
    for name, error in errors(ours, selective_scan, case, **options).items():
        assert error < tolerance, name


@pytest.mark.parametrize("states", [1, 3, 8, 15, 16, 17, 33, 64])
def test_any_number_of_states(states: int) -> None:
    compare(scan_inputs(2, 2 * panels.CHUNK + 3, 21, states, seed=states))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 500])
@pytest.mark.parametrize("channels", [1, 16, 150])
def test_lengths_and_widths(length: int, channels: int) -> None:
    compare(scan_inputs(2, length, channels, seed=length + channels))


@pytest.mark.parametrize(("batch", "length", "channels"), [(0, 5, 8), (2, 0, 8), (0, 0, 8), (2, 5, 0)])
def test_nothing_to_do(batch: int, length: int, channels: int) -> None:
    case = scan_inputs(batch, length, channels, 4)
    ours = outputs_and_gradients(selective_scan, case, backend="cpu")
    assert ours["y"].shape == (batch, length, channels)
    if length == 0:
        assert torch.equal(ours["state"], case["initial_state"])
        assert not ours["dA"].any()


@pytest.mark.parametrize("where", [[0], [5], [5, 6, 7], [0, 1, 15, 16, 17, 31, 32], list(range(40))])
def test_resets_anywhere(where: list[int]) -> None:
    case = scan_inputs(2, 40, 18)
    case["resets"] = torch.zeros(2, 40, dtype=torch.bool)
    case["resets"][1, where] = True
    compare(case)


def test_a_document_that_overflowed_does_not_poison_the_next() -> None:
    case = scan_inputs(1, 12, 16, resets=False)
    case["resets"] = torch.zeros(1, 12, dtype=torch.bool)
    case["resets"][0, 6] = True
    clean, _ = selective_scan(**case, backend="cpu")
    case["x"][0, 3] = torch.inf
    y, state = selective_scan(**case, backend="cpu")
    assert not torch.isfinite(y[:, 3:6]).any()
    assert torch.equal(y[:, 6:], clean[:, 6:])
    assert torch.isfinite(state).all()


def test_growing_states() -> None:
    case = scan_inputs(1, 20, 16)
    case["A"] = case["A"].abs() * 0.1
    compare(case)


@pytest.mark.parametrize("dt", [0.0, 1e-30, 1e4, 1e30])
def test_steps_without_softplus(dt: float) -> None:
    case = scan_inputs(1, 6, 16)
    del case["dt_bias"]
    case["dt"] = torch.full_like(case["dt"], dt)
    y, state = selective_scan(**case, dt_softplus=False, backend="cpu")
    y_reference, state_reference = selective_scan(**case, dt_softplus=False, backend="reference")
    assert relative_error(y, y_reference) < FLOAT32
    assert relative_error(state, state_reference) < FLOAT32


def test_strides_do_not_matter() -> None:
    case = scan_inputs(3, 40, 24)
    wide = torch.randn(3, 40, 48)
    wide[..., :24], wide[..., 24:] = case["x"], case["z"]
    strided = case | {
        "x": wide[..., :24],
        "z": wide[..., 24:],
        "dt": case["dt"].transpose(1, 2).contiguous().transpose(1, 2),
        "A": case["A"].t().contiguous().t(),
        "B": case["B"].transpose(0, 1).contiguous().transpose(0, 1),
        "initial_state": case["initial_state"].transpose(1, 2).contiguous().transpose(1, 2),
        "resets": case["resets"].t().contiguous().t(),
    }
    plain = selective_scan(**case, backend="cpu")
    for ours, theirs in zip(selective_scan(**strided, backend="cpu"), plain, strict=True):
        assert torch.equal(ours, theirs)
    leaves = {k: v.detach().requires_grad_() if v.is_floating_point() else v for k, v in strided.items()}
    y, _ = selective_scan(**leaves, backend="cpu")
    y.sum().backward()  # an expanded output gradient
    leaves_plain = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in case.items()}
    selective_scan(**leaves_plain, backend="cpu")[0].sum().backward()
    for name, leaf in leaves.items():
        if leaf.is_floating_point():
            assert torch.equal(leaf.grad, leaves_plain[name].grad), name


@pytest.mark.parametrize(("batch", "channels"), [(1, 200), (5, 37)])
def test_same_bits_for_any_number_of_threads(batch: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = scan_inputs(batch, 70, channels)
    monkeypatch.setattr(native, "SERIAL_NANOSECONDS", 0)
    results = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(outputs_and_gradients(selective_scan, case, backend="cpu"))
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(value, results[0][name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_types(dtype: torch.dtype) -> None:
    case = scan_inputs(2, 20, 24)
    case |= {"x": case["x"].to(dtype), "z": case["z"].bfloat16(), "B": case["B"].half()}
    y, _ = selective_scan(**case, backend="cpu")
    assert y.dtype == dtype
    y_reference, _ = selective_scan(**case, backend="reference")
    torch.testing.assert_close(y, y_reference, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)


def test_step_with_odd_states_and_a_strided_state() -> None:
    for states in (1, 5, 16, 21):
        case = scan_inputs(3, 4, 21, states, resets=False)
        shared = {k: case.pop(k) for k in ("A", "D", "dt_bias")}
        truth = case.pop("initial_state")
        state = truth.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
        for t in range(4):
            row = {k: v[:, t] for k, v in case.items()}
            y = selective_scan_step(state, **row, **shared, backend="cpu")
            y_reference = selective_scan_step(truth, **row, **shared, backend="reference")
            torch.testing.assert_close(y, y_reference, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state, truth, rtol=1e-5, atol=1e-5)


def test_step_rows_are_computed_as_if_alone() -> None:
    case = scan_inputs(3, 1, 21, resets=False)
    shared = {k: case.pop(k) for k in ("A", "D", "dt_bias")}
    state = case.pop("initial_state")
    together = state.clone()
    y = selective_scan_step(together, **{k: v[:, 0] for k, v in case.items()}, **shared, backend="cpu")
    for i in range(3):
        alone = state[i : i + 1].clone()
        y_alone = selective_scan_step(alone, **{k: v[i : i + 1, 0] for k, v in case.items()}, **shared, backend="cpu")
        assert torch.equal(y_alone[0], y[i])
        assert torch.equal(alone[0], together[i])


def test_double_precision_is_refused_with_a_reason() -> None:
    case = in_float64(scan_inputs(1, 3, 4))
    with pytest.raises(RuntimeError, match="float64"):
        selective_scan(**case, backend="cpu")


def test_a_cpu_without_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_target()
    portable = target_for(host.cpu, re.sub(r"\+avx512", "-avx512", host.features))
    for module in (cpu, panels):
        monkeypatch.setattr(module, "host_target", lambda: portable)
    cpu._kernel.cache_clear()
    try:
        compare(scan_inputs(2, 65, 37))
        case = scan_inputs(2, 20, 24, dtype=torch.bfloat16)
        compare(case, tolerance=2**-8)
    finally:
        cpu._kernel.cache_clear()
