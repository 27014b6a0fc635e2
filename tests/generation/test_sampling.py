"""The distribution that settings make of logits, and draws from it."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabyte.generation.cursor import Cursor
from mambabyte.generation.sampling import Noise, Sampler, Sampling, log_weights, probabilities, winners

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=256) * 3).astype(np.float32)


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def naive(logits, settings, recent=(), allowed=None):
    """The definition, one byte at a time, in plain Python."""
    z = [float(x) for x in logits]
    for b in recent:
        z[b] = z[b] / settings.repetition_penalty if z[b] > 0 else z[b] * settings.repetition_penalty
    if allowed is not None:
        z = [x if ok else -math.inf for x, ok in zip(z, allowed, strict=True)]
    p = softmax(np.array(z) / settings.temperature)
    order = sorted(range(256), key=lambda b: (-p[b], b))
    if settings.top_k is not None:
        order = order[: settings.top_k]
    if settings.top_p is not None:
        total, kept = sum(p[b] for b in order), []
        for b in order:
            kept.append(b)
            if sum(p[k] for k in kept) >= settings.top_p * total:
                break
        order = kept
    if settings.min_p is not None:
        order = [b for b in order if p[b] >= settings.min_p * p[order[0]]]
    q = np.zeros(256)
    q[order] = p[order]
    return q / q.sum()


SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 5, 256, 1000]),
    top_p=st.sampled_from([None, 0.01, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.5]),
)


@given(SETTINGS, st.integers(0, 2**32 - 1))
def test_distribution_is_the_definition(settings, seed):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=256) * 2).astype(np.float32)
    recent = set(rng.integers(0, 256, 20).tolist())
    allowed = rng.random(256) < 0.5
    got = probabilities(log_weights(logits, settings, recent, allowed))
    np.testing.assert_allclose(got, naive(logits, settings, recent, allowed), atol=1e-12)


def test_equal_logits_keep_the_lowest_bytes():
    kept = np.isfinite(log_weights(np.zeros(256, np.float32), Sampling(top_k=3)))
    assert kept.nonzero()[0].tolist() == [0, 1, 2]
    assert Sampler(Sampling(temperature=0.0), 0).scores(np.zeros(256, np.float32), 0).argmax() == 0


@pytest.mark.parametrize("temperature", [1e-300, 1e-12])
def test_a_tiny_temperature_is_greedy(temperature):
    sampler = Sampler(Sampling(temperature=temperature), seed=5)
    assert {sampler.scores(LOGITS, t).argmax() for t in range(50)} == {LOGITS.argmax()}


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=1.7, top_k=7),
        Sampling(top_p=0.8),
        Sampling(min_p=0.1, top_k=20, top_p=0.9),
    ],
    ids=str,
)
def test_draws_have_the_distribution(settings):
    """Chi-square over the likely bytes, the rest in one cell: 3,200 positions of several seeds."""
    p = probabilities(log_weights(LOGITS, settings))
    counts = np.zeros(256)
    for seed in range(4):
        sampler = Sampler(settings, seed)
        for position in range(800):
            counts[sampler.scores(LOGITS, position).argmax()] += 1
    assert counts[p == 0].sum() == 0
    cells = p * counts.sum() >= 5
    expected = np.append(p[cells], p[~cells].sum()) * counts.sum()
    observed = np.append(counts[cells], counts[~cells].sum())
    expected, observed = expected[expected > 0], observed[expected > 0]
    chi2 = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom) + 8  # beyond the 99.9th percentile


def test_noise_is_a_function_of_seed_and_position():
    forwards = np.array([Noise(7)[t] for t in range(100)])
    noise = Noise(7)
    backwards = np.array([noise[t].copy() for t in reversed(range(100))])[::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert np.isfinite(forwards).all()
    assert len(np.unique(forwards)) > 0.999 * forwards.size
    assert not np.array_equal(forwards[0], Noise(8)[0])


def test_the_penalty_window_forgets():
    settings = Sampling(temperature=0.0, repetition_penalty=100.0, repetition_window=2)
    logits = np.zeros(256, np.float32)
    logits[65], logits[66] = 2.0, 1.0
    cursor = Cursor(Sampler(settings, 0), left=9)
    assert cursor.choose(logits) == 65
    assert cursor.after(120).after(65).choose(logits) == 66
    assert cursor.after(65).after(120).after(120).choose(logits) == 65


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad, temperature):
    logits = LOGITS.copy()
    logits[3] = bad
    with pytest.raises(ValueError, match="not finite"):
        log_weights(logits, Sampling(temperature=temperature))


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("temperature", [-1, math.nan, math.inf, "hot", True]),
        ("top_k", [0, -3, 1.5, True]),
        ("top_p", [0, -0.1, 1.01, math.nan]),
        ("min_p", [-0.1, 1.5, math.nan]),
        ("repetition_penalty", [0, -1, math.nan, math.inf]),
        ("repetition_window", [-1, 2.5]),
    ],
)
def test_a_setting_out_of_range_is_named(setting, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{setting} must be"):
            Sampling(**{setting: value})


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", True])
def test_a_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match="seed must be"):
        Noise(seed)


@given(SETTINGS, st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_several_places_at_once_are_each_as_if_alone(settings, seed, count):
    rng = np.random.default_rng(seed)
    settings = dataclasses.replace(settings, repetition_penalty=1.0, temperature=settings.temperature * (seed % 4 > 0))
    logits = (rng.normal(size=(count, 256)) * 3).round(1).astype(np.float32)
    sampler, position = Sampler(settings, seed), seed % 100
    noise = sampler.noise.rows(position, count) if settings.temperature else None
    together = winners(logits, settings, noise)
    alone = Sampler(settings, seed)
    assert together == [alone.scores(row, position + i).argmax() for i, row in enumerate(logits)]


def test_noise_of_several_places_is_that_of_each():
    for position, count in ((0, 1), (30, 5), (31, 70), (64, 32)):
        noise, alone = Noise(3), Noise(3)
        rows = noise.rows(position, count)
        np.testing.assert_array_equal(rows, [alone[position + i] for i in range(count)])
        np.testing.assert_array_equal(noise[position], rows[0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_place_that_is_not_finite_among_several_is_an_error(temperature):
    logits = np.stack([LOGITS] * 3)
    logits[1, 7] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        winners(logits, Sampling(temperature=temperature), np.zeros((3, 256)) if temperature else None)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([1.0, 1.5]),
    st.sampled_from([None, 3]),
)
def test_a_draw_from_weights_is_that_from_their_logarithms(seed, temperature, penalty, top_k):
    rng = np.random.default_rng(seed)
    candidates = np.unique(rng.integers(0, 256, 6))
    weights = np.zeros(256, np.float32)
    weights[candidates] = rng.random(len(candidates)) + 1e-3
    settings = Sampling(temperature=temperature, repetition_penalty=penalty, top_k=top_k)
    cursor = Cursor(Sampler(settings, seed), left=9)
    byte, lead = cursor.draw(weights)
    logits = np.full(256, -1e4, np.float32)
    logits[candidates] = np.log(weights[candidates])
    scores = cursor.scores(logits)
    assert byte == scores.argmax()
    if len(candidates) > 1:
        second, first = np.sort(scores)[-2:]
        assert lead == pytest.approx(first - second, abs=1e-4)
    else:
        assert lead > 100
    assert cursor.draw(np.zeros(256, np.float32)) == (None, 0.0)
