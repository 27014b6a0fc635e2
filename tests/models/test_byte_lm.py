"""ByteLM: the split law for presets, causality, steps, documents, dtypes, and its errors."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.models import PRESETS, ByteLM, ByteLMConfig, preset

ATOL = 2e-4  # logits are of order 1


def small(name: str) -> ByteLM:
    """A preset's architecture at a width and depth that a test can run."""
    config = preset(name)
    torch.manual_seed(0)
    return ByteLM(dataclasses.replace(config, d_model=16, pattern=config.pattern[:3]))


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=4, deadline=None)
@given(length=st.integers(2, 40), cuts=st.sets(st.integers(1, 39), max_size=4))
def test_split_law(name: str, length: int, cuts: set[int]) -> None:
    model = small(name)
    ids = torch.randint(0, 256, (2, length))
    resets = torch.rand(2, length) < 0.1
    bounds = [0, *sorted(c for c in cuts if c < length), length]
    state, pieces = None, []
    for lo, hi in itertools.pairwise(bounds):
        logits, state = model(ids[:, lo:hi], state, resets=resets[:, lo:hi])
        pieces.append(logits)
    whole, _ = model(ids, resets=resets)
    split = torch.cat(pieces, 1)
    torch.testing.assert_close(split, whole, atol=ATOL, rtol=0)
    weight = torch.randn_like(whole)
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad((split * weight).sum(), parameters, retain_graph=True),
        torch.autograd.grad((whole * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["mambabyte-tiny", "mambabyte-374m"])
def test_changing_a_byte_changes_nothing_before_it(name: str) -> None:
    model = small(name)
    ids = torch.randint(0, 256, (1, 30))
    changed = ids.clone()
    changed[0, 17] ^= 1
    logits, _ = model(ids)
    other, _ = model(changed)
    assert torch.equal(logits[:, :17], other[:, :17])
    assert (logits[:, 17:] - other[:, 17:]).abs().amax(-1).min() > 0


def test_documents_in_one_row_are_as_if_alone() -> None:
    model = small("mambabyte-tiny")
    a, b = torch.randint(0, 256, (1, 11)), torch.randint(0, 256, (1, 13))
    resets = torch.zeros(1, 24, dtype=torch.bool)
    resets[0, 11] = True
    packed, state = model(torch.cat([a, b], 1), resets=resets)
    alone, state_alone = model(b)
    torch.testing.assert_close(packed[:, 11:], alone, atol=ATOL, rtol=0)
    torch.testing.assert_close(state.layers[-1].ssm, state_alone.layers[-1].ssm, atol=ATOL, rtol=0)


def test_steps_match_the_forward() -> None:
    model = small("mambabyte-374m")
    ids = torch.randint(0, 256, (2, 25))
    logits, final = model(ids)
    state = model.init_state(2)
    for t in range(25):
        torch.testing.assert_close(model.step_(ids[:, t], state), logits[:, t], atol=ATOL, rtol=0)
    for (name, a), (_, b) in zip(state.named_tensors(), final.named_tensors(), strict=True):
        torch.testing.assert_close(a, b, atol=ATOL, rtol=0, msg=name)


def test_the_first_layers_addition_is_a_residual() -> None:
    """x + layer(norm(x)) written out, against the model's deferred additions."""
    model = small("mambabyte-tiny")
    ids = torch.randint(0, 256, (1, 9))
    x = model.embedding(ids)
    for unit in model.units():
        x = x + unit.layer(unit.norm(x, None, torch.float32)[0])[0]
    expected = model.norm(x, None, torch.float32)[0] @ model.head.weight.T
    torch.testing.assert_close(model(ids)[0], expected, atol=1e-5, rtol=0)


def test_float32_masters_can_compute_in_bfloat16() -> None:
    model = small("mambabyte-tiny")
    ids = torch.randint(0, 256, (1, 20))
    exact, _ = model(ids)
    model.compute_dtype = torch.bfloat16
    logits, state = model(ids)
    assert logits.dtype == torch.bfloat16
    assert state.layers[0].ssm.dtype == torch.float32
    assert state.layers[0].conv.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().max() < 0.1
    logits.float().square().mean().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_a_half_precision_model_runs() -> None:
    model = small("mambabyte-tiny").to(torch.bfloat16)
    logits, state = model(torch.randint(0, 256, (1, 5)))
    assert logits.dtype == torch.bfloat16
    assert model.step_(torch.tensor([7]), state).dtype == torch.bfloat16


def test_a_seed_fixes_the_weights_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    a, b = (ByteLM.from_preset("mambabyte-tiny", seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    other = ByteLM.from_preset("mambabyte-tiny", seed=4)
    assert not torch.equal(a.head.weight, other.head.weight)


def test_a_tied_head_is_the_embedding() -> None:
    model = ByteLM(dataclasses.replace(preset("mambabyte-tiny"), tied_head=True))
    assert model.head.weight is model.embedding.weight


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="did you mean 'mambabyte-tiny'"):
        ByteLM.from_preset("mambabyte-tyny")
    with pytest.raises(ValueError, match="pattern names attention, which layers does not define; it defines mamba"):
        ByteLMConfig(d_model=8, layers=preset("mambabyte-tiny").layers, pattern=("attention",))
    with pytest.raises(ValueError, match="vocab_size must be at least 256"):
        ByteLMConfig(d_model=8, layers={}, pattern=(), vocab_size=255)
    model = small("mambabyte-tiny")
    with pytest.raises(ValueError, match=r"ids must be integers of shape \(batch, length\)"):
        model(torch.zeros(3))
