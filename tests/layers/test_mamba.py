"""The Mamba layer: the split law, causality, steps, resets, and dtypes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mambabyte.layers import Mamba, MambaConfig, MambaState

FLOAT32 = 1e-4  # absolute, outputs are of order 0.1 to 1


def layer(d_model: int = 24, seed: int = 0, **config: int) -> Mamba:
    torch.manual_seed(seed)
    return Mamba(d_model, MambaConfig(**config))


def test_is_the_layer_of_the_paper() -> None:
    mamba = layer(8, d_state=3, d_conv=2)
    x = torch.randn(2, 7, 8)
    u, z = (x @ mamba.in_proj.weight.T).split(16, -1)
    u = F.silu(F.conv1d(F.pad(u.mT, (1, 0)), mamba.conv_weight[:, None], mamba.conv_bias, groups=16).mT)
    rank, B, C = (u @ mamba.x_proj.weight.T).split([1, 3, 3], -1)
    dt = F.softplus(rank @ mamba.dt_proj.weight.T + mamba.dt_bias)
    A, h, ys = -torch.exp(mamba.A_log), torch.zeros(2, 16, 3), []
    for t in range(7):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + mamba.D * u[:, t])
    expected = (torch.stack(ys, 1) * F.silu(z)) @ mamba.out_proj.weight.T
    y, state = mamba(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state.ssm, h, atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 50), cuts=st.sets(st.integers(1, 49), max_size=5), seed=st.integers(0, 100))
def test_split_law_values_and_gradients(length: int, cuts: set[int], seed: int) -> None:
    mamba = layer(seed=seed)
    x = torch.randn(2, length, 24, requires_grad=True)
    resets = torch.rand(2, length) < 0.1
    bounds = [0, *sorted(c for c in cuts if c < length), length]
    state, ys = None, []
    for lo, hi in itertools.pairwise(bounds):
        y, state = mamba(x[:, lo:hi], state, resets=resets[:, lo:hi])
        ys.append(y)
    whole, final = mamba(x, resets=resets)
    split = torch.cat(ys, 1)
    parameters = [x, *mamba.parameters()]
    weight = torch.randn_like(whole)
    torch.testing.assert_close(split, whole, atol=FLOAT32, rtol=FLOAT32)
    torch.testing.assert_close(state.ssm, final.ssm, atol=FLOAT32, rtol=FLOAT32)
    assert torch.equal(state.conv, final.conv) or torch.allclose(state.conv, final.conv, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad((split * weight).sum(), parameters),
        torch.autograd.grad((whole * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_steps_match_the_forward(bias: bool) -> None:
    mamba = layer(bias=bias)
    if bias:
        with torch.no_grad():
            mamba.in_proj.bias.normal_()
            mamba.out_proj.bias.normal_()
    x = torch.randn(3, 20, 24)
    y, final = mamba(x)
    state = mamba.init_state(3, x.device, x.dtype)
    with torch.no_grad():
        for t in range(20):
            torch.testing.assert_close(mamba.step_(x[:, t], state), y[:, t], atol=FLOAT32, rtol=FLOAT32)
    torch.testing.assert_close(state.ssm, final.ssm, atol=FLOAT32, rtol=FLOAT32)
    torch.testing.assert_close(state.conv, final.conv, atol=1e-6, rtol=1e-5)


def test_biases_start_at_zero_and_change_nothing() -> None:
    plain, biased = layer(), layer(bias=True)
    assert not biased.in_proj.bias.any()
    assert not biased.out_proj.bias.any()
    biased.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(biased(x)[0], plain(x)[0], atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        biased.out_proj.bias.fill_(2.0)
    torch.testing.assert_close(biased(x)[0], plain(x)[0] + 2, atol=1e-6, rtol=1e-5)


def test_holding_the_old_state_is_rolling_back() -> None:
    mamba = layer()
    _, old = mamba(torch.randn(1, 5, 24))
    kept = old.clone()
    mamba(torch.randn(1, 9, 24), old)
    assert torch.equal(old.ssm, kept.ssm)
    assert torch.equal(old.conv, kept.conv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_keeps_the_recurrence_float32(dtype: torch.dtype) -> None:
    mamba = layer()
    A_log = mamba.A_log.clone()
    mamba = mamba.to(dtype)
    assert mamba.in_proj.weight.dtype == dtype
    assert {p.dtype for p in (mamba.A_log, mamba.D, mamba.dt_bias)} == {torch.float32}
    assert torch.equal(mamba.A_log, A_log)
    y, state = mamba(torch.randn(1, 6, 24, dtype=dtype))
    assert y.dtype == dtype
    assert state.ssm.dtype == torch.float32


def test_sizes_must_make_sense() -> None:
    with pytest.raises(ValueError, match="d_state must be at least 1, got 0"):
        MambaConfig(d_state=0)


def test_the_state_starts_at_zero() -> None:
    state = layer().init_state(2, torch.device("cpu"), torch.bfloat16)
    assert isinstance(state, MambaState)
    assert state.conv.shape == (2, 3, 48)
    assert state.conv.dtype == torch.bfloat16
    assert state.ssm.shape == (2, 48, 16)
    assert state.ssm.dtype == torch.float32
    assert state.ssm.abs().sum() == 0
