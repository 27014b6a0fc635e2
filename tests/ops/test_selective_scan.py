"""The selective scan's contract: every backend against the float64 reference, the split law, resets, and its errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.ops import selective_scan, selective_scan_step

from .differentiate import errors, outputs_and_gradients, relative_error
from .scan_cases import ending, in_float64, scan_inputs

# float32 accumulates rounding over the length of the memory; measured errors are about a tenth of this
FLOAT32 = 2e-5
BACKENDS = ("reference", "cpu")
LENGTHS = (1, 2, 63, 64, 65, 500)


def plain_loop(x, dt, A, B, C, D, z, dt_bias, initial_state, resets):  # type: ignore[no-untyped-def]
    """The equations element by element, independent of the package."""
    h, ys = initial_state.clone(), []
    for t in range(x.shape[1]):
        h = h * (~resets[:, t, None, None])
        step = torch.log1p(torch.exp(dt[:, t] + dt_bias))
        h = torch.exp(torch.einsum("be,en->ben", step, A)) * h + torch.einsum("be,bn->ben", step * x[:, t], B[:, t])
        y = torch.einsum("ben,bn->be", h, C[:, t]) + D * x[:, t]
        ys.append(y * z[:, t] * torch.sigmoid(z[:, t]))
    return torch.stack(ys, 1), h


def test_reference_is_the_equations() -> None:
    case = in_float64(scan_inputs(2, 30, 5, 7))
    y, state = selective_scan(**case, backend="reference")
    y_loop, state_loop = plain_loop(**case)
    torch.testing.assert_close(y, y_loop)
    torch.testing.assert_close(state, state_loop)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_matches_float64(backend: str, length: int) -> None:
    case = scan_inputs(2, length, 37, seed=length)
    ours = outputs_and_gradients(selective_scan, case, backend=backend)
    for name, error in errors(ours, selective_scan, case).items():
        assert error < FLOAT32, name


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    channels=st.integers(1, 35),
    states=st.sampled_from([1, 2, 5, 16, 24]),
    options=st.sets(st.sampled_from(["D", "z", "dt_bias", "initial_state", "resets"])),
    softplus=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_options(backend, batch, length, channels, states, options, softplus, seed) -> None:  # type: ignore[no-untyped-def]
    case = scan_inputs(batch, length, channels, states, seed=seed)
    case = {k: v for k, v in case.items() if k in {"x", "dt", "A", "B", "C"} | options}
    if not softplus:  # the recurrence decays only where dt is positive
        case |= {k: case[k].abs() * 0.1 for k in ("dt", "dt_bias") if k in case}
    flags = {"dt_softplus": softplus}
    ours = outputs_and_gradients(selective_scan, case, backend=backend, **flags)
    for name, error in errors(ours, selective_scan, case, **flags).items():
        assert ours[name].dtype == (case[name[1:]].dtype if name[0] == "d" else torch.float32), name
        assert error < FLOAT32, name


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None)
@given(length=st.integers(2, 70), cuts=st.sets(st.integers(1, 69), max_size=4), seed=st.integers(0, 1000))
def test_split_law(backend: str, length: int, cuts: set[int], seed: int) -> None:
    case = scan_inputs(2, length, 20, 4, seed=seed)
    bounds = [0, *sorted(c for c in cuts if c < length), length]

    def in_pieces(initial_state, resets, *, A, D, dt_bias, **rows):  # type: ignore[no-untyped-def]
        state, ys = initial_state, []
        for lo, hi in itertools.pairwise(bounds):
            piece = {k: v[:, lo:hi] for k, v in rows.items()}
            y, state = selective_scan(
                **piece, A=A, D=D, dt_bias=dt_bias, initial_state=state, resets=resets[:, lo:hi], backend=backend
            )
            ys.append(y)
        return torch.cat(ys, 1), state

    whole = outputs_and_gradients(selective_scan, case, backend=backend)
    split = outputs_and_gradients(in_pieces, case)
    for name, value in split.items():
        assert relative_error(value, whole[name]) < FLOAT32, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_crosses_a_reset(backend: str) -> None:
    case = scan_inputs(1, 20, 18, resets=False)
    resets = torch.zeros(1, 20, dtype=torch.bool)
    resets[0, 8] = True
    late = {k: v[:, 8:] if k in ("x", "dt", "B", "C", "z") else v for k, v in case.items() if k != "initial_state"}
    y, state = selective_scan(**case, resets=resets, backend=backend)
    y_late, state_late = selective_scan(**late, backend=backend)
    torch.testing.assert_close(y[:, 8:], y_late)
    torch.testing.assert_close(state, state_late)
    x = case["x"].requires_grad_()
    y, state = selective_scan(**case, resets=resets, backend=backend)
    (dx,) = torch.autograd.grad(y[:, 8:].sum() + state.sum(), x)
    assert torch.equal(dx[:, :8], torch.zeros_like(dx[:, :8]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_future_does_not_reach_back(backend: str) -> None:
    case = scan_inputs(1, 30, 17)
    y, _ = selective_scan(**case, backend=backend)
    for name in ("x", "dt", "B", "C", "z"):
        changed = case | {name: case[name].clone()}
        changed[name][:, 12] += 1.0
        y_changed, _ = selective_scan(**changed, backend=backend)
        assert torch.equal(y[:, :12], y_changed[:, :12]), name
        assert not torch.equal(y[:, 12], y_changed[:, 12]), name


def test_a_row_is_computed_as_if_alone() -> None:
    case = scan_inputs(3, 40, 33)
    per_row = {k: v for k, v in case.items() if v.shape[0] == 3 and k not in ("A", "D", "dt_bias")}
    alone = [selective_scan(**(case | {k: v[i : i + 1] for k, v in per_row.items()}), backend="cpu") for i in range(3)]
    y, state = selective_scan(**case, backend="cpu")
    assert torch.equal(y, torch.cat([a[0] for a in alone]))
    assert torch.equal(state, torch.cat([a[1] for a in alone]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("states", [1, 2, 16])
@pytest.mark.parametrize("channels", [1, 15, 16, 32])
def test_nothing_that_is_given_is_written_to(backend: str, states: int, channels: int) -> None:
    case = scan_inputs(2, 5, channels, states)
    kept = {name: tensor.clone() for name, tensor in case.items()}
    leaf = case["initial_state"].requires_grad_()
    y, final = selective_scan(**case, backend=backend)
    gradients = torch.randn_like(y), torch.randn_like(final)
    copies = [g.clone() for g in gradients]
    torch.autograd.grad((y, final), leaf, gradients)
    for name, tensor in case.items():
        assert torch.equal(tensor, kept[name]), name
    assert all(torch.equal(g, copy) for g, copy in zip(gradients, copies, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_match_the_scan(backend: str) -> None:
    case = scan_inputs(2, 25, 19, resets=False)
    y, final = selective_scan(**case, backend=backend)
    state = case["initial_state"].clone()
    rows = {k: case[k] for k in ("x", "dt", "B", "C", "z")}
    rest = {k: case[k] for k in ("A", "D", "dt_bias")}
    for t in range(25):
        y_t = selective_scan_step(state, **{k: v[:, t] for k, v in rows.items()}, **rest, backend=backend)
        assert relative_error(y_t, y[:, t]) < FLOAT32
    assert relative_error(state, final) < FLOAT32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_its_inputs(dtype: torch.dtype) -> None:
    case = scan_inputs(2, 65, 33, dtype=dtype)
    truth = outputs_and_gradients(selective_scan, in_float64(case), backend="reference")
    ours = outputs_and_gradients(selective_scan, case, backend="cpu")
    eps = torch.finfo(dtype).eps
    assert ours["y"].dtype == dtype
    assert ours["state"].dtype == torch.float32
    for name, value in ours.items():
        assert relative_error(value, truth[name]) < eps, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_steps_stay_finite(backend: str) -> None:
    case = scan_inputs(1, 12, 16)
    case["dt"] = torch.tensor([30.0, -30.0, 0.0] * 4)[None, :, None].expand(1, 12, 16).contiguous()
    ours = outputs_and_gradients(selective_scan, case, backend=backend)
    for name, error in errors(ours, selective_scan, case).items():
        assert torch.isfinite(ours[name]).all(), name
        assert error < FLOAT32, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_end_at_different_positions(backend: str) -> None:
    ends = [0, 7, 70]
    stopped, alone = ending(scan_inputs(3, 70, 20, resets=False), ends)
    ours = outputs_and_gradients(selective_scan, stopped, backend=backend)
    for name, error in errors(ours, selective_scan, stopped).items():
        assert error < FLOAT32, name
    for row, (end, case) in enumerate(zip(ends, alone, strict=True)):
        y, state = selective_scan(**case, backend=backend)
        assert relative_error(ours["y"][row : row + 1, :end], y) < FLOAT32
        assert relative_error(ours["state"][row : row + 1], state) < FLOAT32


def test_only_the_final_state_is_used() -> None:
    case = scan_inputs(1, 9, 16)
    x = case["x"].requires_grad_()
    gradients = []
    for backend in BACKENDS:
        _, state = selective_scan(**case, backend=backend)
        gradients.append(torch.autograd.grad(state.square().sum(), x)[0])
    torch.testing.assert_close(*gradients)


def test_wrong_arguments_are_named() -> None:
    case = scan_inputs(2, 5, 4)
    with pytest.raises(ValueError, match=r"selective_scan: B has shape \(2, 4, 16\), expected \(2, 5, 16\)"):
        selective_scan(**(case | {"B": case["B"][:, :4]}))
    with pytest.raises(ValueError, match="resets must be bool"):
        selective_scan(**(case | {"resets": case["resets"].float()}))
    with pytest.raises(ValueError, match="backend='fast' is not one of"):
        selective_scan(**case, backend="fast")
    with pytest.raises(RuntimeError, match="the cuda backend cannot run here: the tensors are on cpu"):
        selective_scan(**case, backend="cuda")


def test_compile_keeps_the_op_whole() -> None:
    case = scan_inputs(1, 8, 16)
    explained = torch._dynamo.explain(lambda: selective_scan(**case, backend="cpu"))()
    assert explained.graph_break_count == 0
