"""The causal convolution's contract: every backend against the reference, the split law, resets, and its errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mambabyte.ops import causal_conv, causal_conv_step

from .differentiate import errors, outputs_and_gradients, relative_error
from .scan_cases import conv_inputs, in_float64

FLOAT32 = 2e-6
BACKENDS = ("reference", "cpu")


def test_reference_is_torchs_convolution() -> None:
    case = in_float64(conv_inputs(2, 20, 6, 4, resets=False))
    y, state = causal_conv(**case, backend="reference")
    inputs = torch.cat([case["initial_state"], case["x"]], 1).mT
    expected = F.silu(F.conv1d(inputs, case["weight"][:, None], case["bias"], groups=6)).mT
    torch.testing.assert_close(y, expected)
    assert torch.equal(state, case["x"][:, -3:])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    channels=st.integers(1, 35),
    width=st.integers(1, 8),
    options=st.sets(st.sampled_from(["bias", "initial_state", "resets"])),
    activation=st.sampled_from([None, "silu"]),
    seed=st.integers(0, 1000),
)
def test_matches_float64(backend, batch, length, channels, width, options, activation, seed) -> None:  # type: ignore[no-untyped-def]
    case = conv_inputs(batch, length, channels, width, seed=seed)
    case = {k: v for k, v in case.items() if k in {"x", "weight"} | options}
    ours = outputs_and_gradients(causal_conv, case, backend=backend, activation=activation)
    for name, error in errors(ours, causal_conv, case, activation=activation).items():
        assert error < FLOAT32, name


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 30), cuts=st.sets(st.integers(1, 29), max_size=6), width=st.integers(1, 6))
def test_split_law(backend: str, length: int, cuts: set[int], width: int) -> None:
    case = conv_inputs(2, length, 20, width, seed=length)
    bounds = [0, *sorted(c for c in cuts if c < length), length]

    def in_pieces(x, weight, bias, initial_state, resets):  # type: ignore[no-untyped-def]
        state, ys = initial_state, []
        for lo, hi in itertools.pairwise(bounds):
            y, state = causal_conv(
                x[:, lo:hi], weight, bias, initial_state=state, resets=resets[:, lo:hi], backend=backend
            )
            ys.append(y)
        return torch.cat(ys, 1), state

    whole = outputs_and_gradients(causal_conv, case, backend=backend)
    for name, value in outputs_and_gradients(in_pieces, case).items():
        assert relative_error(value, whole[name]) < FLOAT32, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_match_the_convolution(backend: str) -> None:
    case = conv_inputs(2, 12, 19, resets=False)
    y, final = causal_conv(**case, backend=backend)
    state = case["initial_state"].clone()
    for t in range(12):
        y_t = causal_conv_step(state, case["x"][:, t], case["weight"], case["bias"], backend=backend)
        assert relative_error(y_t, y[:, t]) < FLOAT32
    assert torch.equal(state, final)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_crosses_a_reset(backend: str) -> None:
    case = conv_inputs(1, 10, 16, resets=False)
    resets = torch.zeros(1, 10, dtype=torch.bool)
    resets[0, 8] = True
    y, state = causal_conv(**case, resets=resets, backend=backend)
    y_late, state_late = causal_conv(case["x"][:, 8:], case["weight"], case["bias"], backend=backend)
    torch.testing.assert_close(y[:, 8:], y_late)
    assert torch.equal(state, state_late)
    assert torch.equal(state[:, 0], torch.zeros_like(state[:, 0]))


def test_wrong_arguments_are_named() -> None:
    case = conv_inputs(2, 5, 4)
    with pytest.raises(ValueError, match=r"initial_state has shape \(2, 2, 4\), expected \(2, 3, 4\)"):
        causal_conv(**(case | {"initial_state": case["initial_state"][:, :2]}))
    with pytest.raises(ValueError, match="activation='relu' is not one of"):
        causal_conv(**case, activation="relu")
