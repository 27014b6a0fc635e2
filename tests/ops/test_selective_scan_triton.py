"""The Triton scan against the reference in float64 at awkward shapes, interpreted on a CPU and compiled on a GPU."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from mambabyte.ops import selective_scan, selective_scan_step
from mambabyte.ops.selective_scan import triton

from .differentiate import errors, outputs_and_gradients, relative_error
from .scan_cases import ending, in_float64, scan_inputs
from .triton_devices import _runs_here, on, on_each_device  # noqa: F401

pytestmark = on_each_device
FLOAT32 = 5e-6
ROWS = ("x", "dt", "B", "C", "z")


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few positions reach over several groups of rows and several chunks."""
    monkeypatch.setattr(triton, "CHUNK", 4)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is cut into as many segments as there are chunks."""
    monkeypatch.setattr(triton, "SEGMENT_ROWS", 4)
    monkeypatch.setattr(triton, "PROGRAMS", 1000)


def check(case: dict[str, Tensor], device: str, tolerance: float = FLOAT32, **options: object) -> None:
    case = on(device, case)
    ours = outputs_and_gradients(selective_scan, case, backend="triton", **options)
    for name, error in errors(ours, selective_scan, case, **options).items():
        kept = torch.float32 if name == "state" else case["x" if name == "y" else name[1:]].dtype
        assert ours[name].dtype == kept, name
        assert error < tolerance, name


@pytest.mark.parametrize("length", [1, 2, 4, 5, 11])
def test_lengths(length: int, device: str) -> None:
    check(scan_inputs(2, length, 5, 3, seed=length), device)


@pytest.mark.parametrize(("channels", "states"), [(1, 1), (33, 2), (3, 16), (32, 17), (2, 64)])
def test_channels_and_states(channels: int, states: int, device: str) -> None:
    check(scan_inputs(1, 5, channels, states), device)


@pytest.mark.parametrize("absent", ["D", "z", "dt_bias", "initial_state", "resets"])
def test_without_optional_tensors(absent: str, device: str) -> None:
    case = scan_inputs(1, 10, 5, 3)
    del case[absent]
    check(case, device)


def test_without_softplus(device: str) -> None:
    case = scan_inputs(1, 10, 5, 3)
    case |= {"dt": case["dt"].abs() * 0.1, "dt_bias": case["dt_bias"].abs() * 0.1}
    check(case, device, dt_softplus=False)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize(("starts", "initial"), [([], True), ([], False), ([0, 3, 4, 6], True), ([10], False)])
def test_segments_of_time(starts: list[int], initial: bool, device: str) -> None:
    case = scan_inputs(1, 11, 5, 3, resets=False, initial=initial)
    if starts:
        case["resets"] = torch.zeros(1, 11, dtype=torch.bool)
        case["resets"][0, starts] = True
    check(case, device)


@pytest.mark.parametrize("starts", [[0], [3], [3, 4, 5], list(range(6))])
def test_resets(starts: list[int], device: str) -> None:
    case = scan_inputs(1, 6, 5, 3)
    case["resets"] = torch.zeros(1, 6, dtype=torch.bool)
    case["resets"][0, starts] = True
    check(case, device)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, which the interpreter calculates with
def test_a_document_that_overflowed_does_not_poison_the_next(device: str) -> None:
    case = scan_inputs(1, 15, 5, 3, resets=False)
    case["resets"] = torch.zeros(1, 15, dtype=torch.bool)
    case["resets"][0, 6] = True
    clean, _ = selective_scan(**on(device, case), backend="triton")
    case["x"][0, 2] = torch.inf
    y, state = selective_scan(**on(device, case), backend="triton")
    assert not torch.isfinite(y[:, 2:6]).any()
    assert torch.equal(y[:, 6:], clean[:, 6:])
    assert torch.isfinite(state).all()


def test_split_law(device: str) -> None:
    case = on(device, scan_inputs(1, 8, 5, 3))

    def in_pieces(initial_state, resets, *, A, D, dt_bias, **rows):  # type: ignore[no-untyped-def]
        state, ys = initial_state, []
        for lo, hi in itertools.pairwise([0, 1, 4, 8]):
            piece = {k: v[:, lo:hi] for k, v in rows.items()}
            options = {"initial_state": state, "resets": resets[:, lo:hi], "backend": "triton"}
            y, state = selective_scan(**piece, A=A, D=D, dt_bias=dt_bias, **options)
            ys.append(y)
        return torch.cat(ys, 1), state

    whole = outputs_and_gradients(selective_scan, case, backend="triton")
    for name, value in outputs_and_gradients(in_pieces, case).items():
        assert relative_error(value, whole[name]) < FLOAT32, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_its_inputs(dtype: torch.dtype, device: str) -> None:
    check(scan_inputs(1, 9, 5, 3, dtype=dtype), device, torch.finfo(dtype).eps)


def test_mixed_dtypes_and_strides(device: str) -> None:
    case = scan_inputs(2, 5, 6, 4)
    wide = torch.randn(2, 5, 12)
    case |= {"x": wide[..., :6], "z": wide[..., 6:].bfloat16(), "B": case["B"].half(), "D": case["D"].bfloat16()}
    case["dt"] = case["dt"].transpose(1, 2).contiguous().transpose(1, 2)
    case["A"] = case["A"].t().contiguous().t()
    case["C"] = case["C"].transpose(0, 1).contiguous().transpose(0, 1)
    check(case, device, torch.finfo(torch.bfloat16).eps)


def test_large_and_small_steps(device: str) -> None:
    case = scan_inputs(1, 4, 16, 3)
    case["dt"] = torch.linspace(-40, 40, 64).view(1, 4, 16)
    check(case, device)


def test_rows_may_end_at_different_positions(device: str) -> None:
    ends = [0, 7, 9]
    stopped, alone = ending(on(device, scan_inputs(3, 9, 4, 3, resets=False)), ends)
    ours = outputs_and_gradients(selective_scan, stopped, backend="triton")
    for name, error in errors(ours, selective_scan, stopped).items():
        assert error < FLOAT32, name
    for row, (end, case) in enumerate(zip(ends, alone, strict=True)):
        y, state = selective_scan(**case, backend="triton")
        assert relative_error(ours["y"][row : row + 1, :end], y) < FLOAT32
        assert relative_error(ours["state"][row : row + 1], state) < FLOAT32


@pytest.mark.parametrize(("batch", "length", "channels"), [(0, 5, 4), (2, 0, 4), (2, 5, 0)])
def test_nothing_to_do(batch: int, length: int, channels: int, device: str) -> None:
    case = on(device, scan_inputs(batch, length, channels, 3))
    ours = outputs_and_gradients(selective_scan, case, backend="triton")
    assert ours["y"].shape == (batch, length, channels)
    if length == 0:
        assert torch.equal(ours["state"], case["initial_state"])
        assert not ours["dA"].any()


def test_the_gradient_of_the_state_before_nothing_is_memory_of_its_own(device: str) -> None:
    case = on(device, scan_inputs(2, 0, 4, 3))
    _, final = selective_scan(**case | {"initial_state": case["initial_state"].requires_grad_()}, backend="triton")
    given = torch.randn_like(final)
    (gradient,) = torch.autograd.grad(final, case["initial_state"], given)
    assert torch.equal(gradient, given)
    assert gradient.data_ptr() != given.data_ptr(), "who adds to the one would change the other"


def test_nothing_that_is_given_is_written_to(device: str) -> None:
    case = on(device, scan_inputs(2, 5, 1, 1))
    kept = {name: tensor.clone() for name, tensor in case.items()}
    y, final = selective_scan(**case | {"x": case["x"].requires_grad_()}, backend="triton")
    gradients = torch.randn_like(y), torch.randn_like(final)
    copies = [g.clone() for g in gradients]
    torch.autograd.grad((y, final), case["x"], gradients)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in case.items())
    assert all(torch.equal(g, copy) for g, copy in zip(gradients, copies, strict=True))


def test_positions_with_no_step_leave_the_state_alone(device: str) -> None:
    case = on(device, scan_inputs(1, 10, 5, 3, resets=False))
    case["dt"][:, 6:] = -torch.inf
    _, last = selective_scan(**case, backend="triton")
    _, expected = selective_scan(**case | {name: case[name][:, :6] for name in ROWS}, backend="triton")
    assert torch.equal(last, expected)


def test_errors_of_exp2_to_one_side_do_not_add_up(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's exp2 may do, by NumPy's for the interpreter: every power comes out too small. (dA was once
    off by 3e-6 after 700 rows on a GPU.)"""
    exp2 = np.exp2
    monkeypatch.setattr(np, "exp2", lambda v: exp2(v) * (1 - np.float32(2**-22)))
    case = scan_inputs(1, 64, 3, 2, resets=False)
    check(case | {"dt_bias": case["dt_bias"] - 5}, device, 2e-6)


def test_only_the_final_state_is_used(device: str) -> None:
    case = on(device, scan_inputs(1, 9, 5, 3))
    x = case["x"].requires_grad_()
    results = []
    for backend in ("triton", "reference"):
        _, state = selective_scan(**case, backend=backend)
        results.append(torch.autograd.grad(state.square().sum(), x)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("states", [1, 5, 64])
def test_steps_match_the_reference(states: int, device: str) -> None:
    case = on(device, scan_inputs(3, 3, 33, states, resets=False))
    truth = case["initial_state"]
    state = truth.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
    rest = {name: case[name] for name in ("A", "D", "dt_bias")}
    for t in range(3):
        row = {name: case[name][:, t] for name in ROWS}
        y = selective_scan_step(state, **row, **rest, backend="triton")
        expected = selective_scan_step(truth, **row, **rest, backend="reference")
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, truth, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_run_is_refused_with_a_reason(device: str) -> None:
    with pytest.raises(RuntimeError, match=r"its kernels take bfloat16, float16 and float32, not torch\.float64"):
        selective_scan(**on(device, in_float64(scan_inputs(1, 3, 4))), backend="triton")
    with pytest.raises(RuntimeError, match="at most 64 states, not 65"):
        selective_scan(**on(device, scan_inputs(1, 3, 4, 65)), backend="triton")
