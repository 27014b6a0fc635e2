"""Stock transformers on our kernels: the same numbers, for models made before and after, until it is undone."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

from mambabyte.hf import patch
from mambabyte.hf.kernels import REPLACED


def stock(dtype: torch.dtype = torch.float32, **sizes: object) -> MambaForCausalLM:
    torch.manual_seed(0)
    settings = {"vocab_size": 256, "hidden_size": 24, "num_hidden_layers": 2, "eos_token_id": None, "pad_token_id": 0}
    model = MambaForCausalLM(MambaConfig(**(settings | sizes))).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def ids(length: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(1))


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    state_size=st.integers(1, 9),
    conv_kernel=st.integers(2, 5),
    conv_bias=st.booleans(),
    act=st.sampled_from(["silu", "swish", "gelu"]),
    length=st.integers(1, 40),
)
def test_logits_stay(state_size: int, conv_kernel: int, conv_bias: bool, act: str, length: int) -> None:
    model = stock(state_size=state_size, conv_kernel=conv_kernel, use_conv_bias=conv_bias, hidden_act=act)
    with torch.no_grad():
        expected = model(ids(length)).logits
        with patch():
            torch.testing.assert_close(model(ids(length)).logits, expected, atol=1e-4, rtol=0)


def test_gradients_stay() -> None:
    model, gradients = stock().train(), []
    for kernels in (torch.enable_grad(), patch()):
        model.zero_grad()
        with kernels:
            model(ids(), labels=ids()).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_generation_stays(length: int) -> None:
    model = stock()
    expected = model.generate(ids(length), max_new_tokens=12, do_sample=False)
    with patch():
        assert torch.equal(model.generate(ids(length), max_new_tokens=12, do_sample=False), expected)


def test_the_cache_is_the_same_after_every_step() -> None:
    model = stock()
    caches = []
    for kernels in (torch.no_grad(), patch()):
        with kernels, torch.no_grad():
            output = model(ids(3), use_cache=True)
            for t in range(6):
                output = model(ids()[:, t : t + 1], cache_params=output.cache_params, use_cache=True)
        caches.append(output.cache_params)
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        torch.testing.assert_close(ours.conv_states[0], theirs.conv_states[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.recurrent_states[0], theirs.recurrent_states[0], atol=1e-4, rtol=0)


def test_half_precision_runs() -> None:
    model = stock(torch.bfloat16)
    with patch(), torch.no_grad():
        half = model(ids()).logits
        assert model.generate(ids(5), max_new_tokens=4).shape == (2, 9)
    with torch.no_grad():
        exact = model.float()(ids()).logits
    assert (half - exact).abs().mean() < 0.02 * exact.abs().mean() + 0.02


def test_it_is_undone() -> None:
    before = {name: getattr(modeling_mamba, name) for name in REPLACED}
    with patch():
        assert all(getattr(modeling_mamba, name) is ours for name, ours in REPLACED.items())
        with patch():
            pass
        assert all(getattr(modeling_mamba, name) is ours for name, ours in REPLACED.items())
    assert {name: getattr(modeling_mamba, name) for name in REPLACED} == before
    undo = patch()
    undo.close()
    assert {name: getattr(modeling_mamba, name) for name in REPLACED} == before


def test_another_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(modeling_mamba, "causal_conv1d_fn")
    with pytest.raises(ValueError, match="cannot be patched: its Mamba has no causal_conv1d_fn"):
        patch()
    monkeypatch.undo()
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", lambda x, dt: SimpleNamespace())
    with pytest.raises(ValueError, match=r"has no hidden_states, .* in mamba_selective_scan"):
        patch()
