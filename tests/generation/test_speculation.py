"""Speculative decoding changes the time, not the bytes: for every drafter, setting, batch and near tie."""

import gc
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.generation import ByteDrafter, Cursor, LookupDrafter, generate, stream
from mambabyte.generation import engine as engines
from mambabyte.generation.sampling import Sampler, Sampling, log_weights, probabilities
from mambabyte.generation.speculation import LONGEST, PAUSES, Confidence, Pace, agreement
from mambabyte.models import ByteLMState
from tests.generation.conftest import tiny_model

PROMPTS = [b"", b"a", b"abcabcabcabc", b"\xff\x00\xfe", b"the cat. the dog. the "]
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 12, "top_p": 0.9},
    {"min_p": 0.1, "repetition_penalty": 1.3},
]


class Scripted:
    """Guesses given bytes, right or wrong: `script` are the bytes expected from the prompt's end on."""

    def __init__(self, script, cost=0.0):
        self.script, self.cost = script, cost

    def begin(self, text):
        guesser = Scripted(self.script)
        guesser.at = 0
        return guesser

    def read(self, data):
        self.at += len(data)

    def close(self):
        pass

    def guess(self, count, cursor, confidence):
        return self.script[self.at : self.at + count]


def sure():
    """A confidence to which everything is worth it."""
    return Confidence([1.0] * 8, 0.0, 0.0)


def blur(model, amount, seed=0):
    """A model that is nearly `model`: a good drafter."""
    other = tiny_model()
    torch.manual_seed(seed)
    with torch.no_grad():
        for a, b in zip(other.parameters(), model.parameters(), strict=True):
            a.copy_(b + amount * b.std() * torch.randn_like(b) if b.numel() > 1 else b)
    return other


def drafters(model):
    return {
        "lookup": LookupDrafter(shortest=1),
        "nearly itself": ByteDrafter(blur(model, 0.05)),
        "a stranger": ByteDrafter(tiny_model(seed=9)),
        "noise": Scripted(np.random.default_rng(0).bytes(1000)),
    }


@pytest.mark.parametrize("open_engine", [engines.open_engine, engines.TorchEngine])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["lookup", "nearly itself", "a stranger", "noise"])
def test_the_bytes_are_those_of_plain_decoding(model, name, sampling, open_engine):
    """Alone and in a batch whose rows accept different lengths, with a stop string."""
    options = {"max_bytes": 20, "seed": 3, "stop": b"qz", "engine": open_engine(model), **sampling}
    plain = [generate(model, p, **options) for p in PROMPTS]
    drafter = drafters(model)[name]
    assert generate(model, PROMPTS, drafter=drafter, **options) == plain
    assert [generate(model, p, drafter=drafter, **options) for p in PROMPTS[2:4]] == plain[2:4]


@pytest.mark.parametrize("right", [0, 1, 2, 7, 31, 60])
def test_a_guess_that_goes_wrong_anywhere_costs_only_the_rest(model, right):
    plain = generate(model, b"xyz", max_bytes=60, temperature=0.0)
    script = plain[:right] + bytes(255 - b for b in plain[right:])
    pieces = stream(model, b"xyz", max_bytes=60, temperature=0.0, drafter=Scripted(script))
    assert b"".join(pieces) == plain
    assert pieces.statistics.accepted <= right
    assert pieces.statistics.bytes == 60


def test_a_perfect_drafter_gives_many_bytes_a_pass(model):
    plain = generate(model, b"ab" * 60, max_bytes=100, temperature=0.0)
    pieces = stream(model, b"ab" * 60, max_bytes=100, temperature=0.0, drafter=Scripted(plain))
    assert b"".join(pieces) == plain
    report = pieces.statistics.to_dict()
    assert report["bytes"] == 100
    assert report["acceptance"] == 1
    assert report["bytes_per_pass"] > 3
    assert 0 < report["drafter_share"] < 1
    itself = ByteDrafter(model, engine=engines.open_engine(model))
    pieces = stream(model, b"ab" * 60, max_bytes=100, temperature=0.0, drafter=itself)
    assert b"".join(pieces) == plain
    assert pieces.statistics.accepted == pieces.statistics.drafted > 0


def near_tie_model(gap):
    """Every logit has a twin a hair apart: the scan's and the step's roundings order them differently."""
    model = tiny_model(seed=4)
    with torch.no_grad():
        head = model.head.weight
        head[128:] = head[:128] * (1 + gap * torch.randn(128, 1))
    return model


@pytest.mark.parametrize("open_engine", [engines.open_engine, engines.TorchEngine])
@pytest.mark.parametrize("gap", [1e-7, 1e-6])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ties_are_broken_as_plain_decoding_breaks_them(gap, temperature, open_engine):
    model = near_tie_model(gap)
    engine = open_engine(model)
    options = {"max_bytes": 60, "temperature": temperature, "seed": 1, "engine": engine}
    for prompt in PROMPTS[:3]:
        plain = generate(model, prompt, **options)
        pieces = stream(model, prompt, drafter=Scripted(plain), **options)
        assert b"".join(pieces) == plain
        assert (pieces.statistics.replays > 0) == (engine.tolerance > 0 and temperature == 0)


def test_scan_and_step_agree_far_within_the_tolerance():
    for seed in range(3):
        model = tiny_model(seed=seed, n_layers=6, d_model=32)
        data = np.random.default_rng(seed).bytes(100)
        engine = engines.TorchEngine(model)
        one, many = engine.join(model.init_state()), engine.join(model.init_state())
        stepped = np.concatenate([engine.read([one], [data[i : i + 1]])[0] for i in range(len(data))])
        scanned = np.concatenate([engine.read([many], [data[i : i + 10]])[0] for i in range(0, len(data), 10)])
        assert np.abs(stepped - scanned).max() < 0.1 * engine.tolerance * np.abs(stepped).max()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 1)), min_size=1, max_size=8), st.integers(0, 2**31))
def test_rewinding_is_never_having_read(model, reads, seed):
    engine = engines.TorchEngine(model)
    row, kept = engine.join(model.init_state()), b""
    rng = np.random.default_rng(seed)
    for length, fraction in reads:
        data = rng.bytes(length)
        logits = engine.read([row], [data])[0]
        assert logits.shape == (length, 256)
        count = max(1, round(fraction * length))
        if count < length:
            engine.rewind(row, count)
        kept += data[:count]
    expected = engines.prefill(model, kept)
    for (name, a), (_, b) in zip(engine.state(row).named_tensors(), expected.named_tensors(), strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


def test_a_state_that_no_rewind_can_ask_for_is_let_go(model):
    def states():
        return sum(type(thing) is ByteLMState for thing in gc.get_objects())

    engine = engines.TorchEngine(model)
    row = engine.join(model.init_state())
    others = states() - 1
    held = []
    for data, rewound in ((b"abc", None), (b"d", None), (b"efg", 2), (b"h", None), (b"ij", None)):
        engine.read([row], [data])
        held.append(states() - others)
        if rewound is not None:
            engine.rewind(row, rewound)
            held.append(states() - others)
    assert held == [2, 1, 2, 1, 1, 2]


@pytest.mark.parametrize("sampling", SETTINGS[1:], ids=str)
def test_the_context_after_speculation_is_what_was_given(model, sampling):
    pieces = stream(model, b"abcabc", max_bytes=37, seed=2, drafter=ByteDrafter(blur(model, 0.1)), **sampling)
    given_bytes = b"".join(pieces)
    expected = engines.prefill(model, b"abcabc" + given_bytes)
    torch.testing.assert_close(pieces.context.logits, expected.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["lookup", "a stranger", "nearly itself"])
@pytest.mark.parametrize("sampling", [{"temperature": 1.5, "top_k": 3}, {"top_p": 0.6, "min_p": 0.02}], ids=str)
def test_the_distribution_is_the_targets(name, sampling):
    """Chi-square of all outputs of 3 bytes against their probabilities, enumerated with the whole forward."""
    model = tiny_model(seed=2, gain=12.0)
    expected = enumerate_outputs(model, b"aab", 3, Sampling(**sampling))
    draws, drafter = 200, drafters(model)[name]
    outputs = generate(model, [b"aab"] * draws, max_bytes=3, seed=list(range(draws)), drafter=drafter, **sampling)
    counts = Counter(outputs)
    assert set(counts) <= set(expected)
    likely = [o for o, p in expected.items() if p * draws >= 5]
    cells = [(counts[o], expected[o] * draws) for o in likely]
    cells.append((draws - sum(c for c, _ in cells), draws - sum(e for _, e in cells)))
    chi2 = sum((c - e) ** 2 / e for c, e in cells if e > 1e-6)
    freedom = len(cells) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom) + 8


def enumerate_outputs(model, prompt, length, settings):
    found = {b"": 1.0}
    for _ in range(length):
        grown = {}
        for text, p in found.items():
            with torch.no_grad():
                logits, _ = model(torch.tensor([list(prompt + text)]))
            q = probabilities(log_weights(logits[0, -1].numpy(), settings))
            grown |= {text + bytes([b]): p * q[b] for b in q.nonzero()[0].tolist()}
        found = grown
    assert sum(found.values()) == pytest.approx(1)
    return found


def test_top_beta_is_inexact_by_name_and_bounded(model):
    pieces = stream(model, b"x", max_bytes=40, drafter=Scripted(bytes(range(32, 120))), top_beta=256, seed=0)
    assert len(b"".join(pieces)) == 40
    assert pieces.statistics.accepted == pieces.statistics.drafted > 0
    exact = generate(model, b"abab", max_bytes=40, temperature=0.0)
    drafter = ByteDrafter(blur(model, 0.3))
    assert generate(model, b"abab", max_bytes=40, temperature=0.0, drafter=drafter, top_beta=1) == exact
    out = generate(model, b"abab", max_bytes=40, temperature=0.0, drafter=drafter, top_beta=3)
    with torch.no_grad():
        logits, _ = model(torch.tensor([list(b"abab" + out)]))
    ranks = [(logits[0, 3 + i] > logits[0, 3 + i, b]).sum().item() for i, b in enumerate(out)]
    assert max(ranks) < 3


@given(st.binary(max_size=60).map(lambda b: bytes(97 + x % 3 for x in b)), st.integers(1, 10))
def test_lookup_continues_the_longest_earlier_match(text, count):
    guess = LookupDrafter(shortest=2).begin(text).guess(count, Cursor(Sampler(Sampling(), 0), left=99), sure())
    places = [e for e in range(2, len(text)) if text[e - 2 : e] == text[-2:]]
    if not places:
        assert guess == b""
        return
    common = {e: next(n for n in itertools.count(2) if n >= e or text[e - n - 1] != text[-n - 1]) for e in places}
    longest = max(common[e] for e in places[-16:])
    best = max(e for e in places[-16:] if common[e] == longest)
    assert guess == bytes(text[best + i % (len(text) - best)] for i in range(count))


def test_a_guess_grows_with_acceptance_and_shrinks_with_cost():
    """Of a drafter that does not say how sure it is."""

    def settled(acceptance, cost):
        pace = Pace(cost)
        pace.acceptance = acceptance
        return pace.length()

    lengths = [settled(a, 0.0) for a in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert lengths[-1] == LONGEST
    assert settled(0.9, 0.0) > settled(0.9, 0.3) >= 1
    pace = Pace(0.0)
    for _ in range(100):
        pace.learn(pace.begin(), 4, 4)
    assert pace.acceptance > 0.99
    for _ in range(100):
        pace.learn(pace.begin(), 4, 0)
    assert pace.acceptance < 0.01


@pytest.mark.parametrize(("alone", "more"), [(1e-4, 2e-6), (2e-3, 3e-4)])
def test_times_are_measured(alone, more):
    """A pass of one byte, each byte more in it, and a read of the drafter at a third of the time of a pass."""
    pace, rng = Pace(0.0), np.random.default_rng(0)
    pace.learn(asked(pace, 9.0), 1, 1)
    for _ in range(300):
        guessed, reads = rng.integers(0, 12), rng.integers(0, 4)
        pace.time(guessed, 3, reads, (0.1 + reads / 3) * alone, alone + more * guessed)
    assert pace.verifying == pytest.approx(more / alone, abs=0.02)
    assert pace.reading == pytest.approx(1 / 3, rel=0.4)


def asked(pace, *leads):
    """The confidence of a drafter whose bytes led by so much."""
    confidence = pace.begin()
    for lead in leads:
        confidence.byte(lead)
    return confidence


def test_a_drafter_that_does_not_pay_is_left_alone_but_for_trials():
    pace = Pace(0.5)
    guesses = []
    for _ in range(1000):
        guesses.append(pace.length())
        pace.learn(asked(pace), guesses[-1], 0)
        pace.time(guesses[-1], 1, 0, 1e-3 if guesses[-1] else 0.0, 1e-3)
    drafting = [length > 0 for length in guesses]
    assert 5 < sum(drafting) < 100
    assert any(drafting[500:]), "it is tried again"
    for _ in range(400):
        length = pace.length()
        pace.learn(asked(pace), length, length)
        pace.time(length, 1 + length, 0, 1e-4 if length else 0.0, 1e-3)
    assert all(pace.length() > 0 for _ in range(PAUSES[1])), "and kept once it pays"


def test_bytes_and_reads_are_guessed_while_they_are_worth_their_time():
    confidence = Confidence([0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0], 0.2, 0.4)
    assert confidence.byte(99.0)
    assert confidence.read()
    assert confidence.byte(0.2), "one chance in two"
    assert confidence.read()
    assert confidence.byte(0.2)
    assert not confidence.read(), "one in four is too little for a read"
    assert confidence.byte(99.0), "but not for a byte"
    assert not confidence.byte(0.0)
    assert (confidence.reads, len(confidence.leads)) == ([1, 2], 4)
    confidence.catch_up()
    assert confidence.all_reads == 3


def test_what_leads_are_worth_is_learnt():
    pace = Pace(0.0)
    before = list(pace.right)
    assert before == sorted(before)
    for _ in range(100):
        pace.learn(asked(pace, 0.2, 9.0), 2, 1)
    close, far = pace.right[1], pace.right[-1]
    assert close > 0.9
    assert far < 0.2
    for _ in range(300):
        pace.learn(asked(pace), 0, 0)
    assert pace.right == pytest.approx(before, abs=0.1), "and what was learnt long ago is forgotten"


@pytest.mark.parametrize(("a", "b", "same"), [(b"", b"x", 0), (b"abc", b"abd", 2), (b"ab", b"abc", 2), (b"x", b"x", 1)])
def test_agreement(a, b, same):
    assert agreement(a, b) == agreement(b, a) == same


def test_wrong_drafters_are_sentences(model):
    with pytest.raises(ValueError, match="lookup"):
        generate(model, b"a", drafter="oracle")
    with pytest.raises(ValueError, match="no drafter"):
        generate(model, b"a", top_beta=3)
    with pytest.raises(ValueError, match="top_beta must be"):
        generate(model, b"a", drafter="lookup", top_beta=0)


@pytest.mark.parametrize("open_engine", [engines.open_engine, engines.TorchEngine])
def test_a_fork_goes_its_own_way(model, open_engine):
    engine = open_engine(model)
    row = engine.join(model.init_state())
    engine.read([row], [b"shared"])
    engine.rewind(row, 4)
    fork = engine.fork(row)
    apart = engine.read([row, fork], [b"left", b"right"])
    engine.leave(row)
    for tail, logits in ((b"left", apart[0]), (b"right", apart[1])):
        expected = engines.prefill(model, b"shar" + tail).logits[0].numpy()
        np.testing.assert_allclose(logits[-1], expected, rtol=1e-4, atol=1e-4)
    after = engine.read([fork], [b"!"])[0][-1]
    np.testing.assert_allclose(after, engines.prefill(model, b"sharright!").logits[0].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("open_engine", [engines.open_engine, engines.TorchEngine])
def test_an_engine_opened_for_more_ids_returns_their_logits(open_engine):
    model = tiny_model(vocab_size=300)
    assert open_engine(model).outputs == 256
    engine = open_engine(model, outputs=300)
    row = engine.join(model.init_state())
    logits = engine.read([row], [[5, 299, 256]])[0]
    with torch.no_grad():
        expected, _ = model(torch.tensor([[5, 299, 256]]))
    np.testing.assert_allclose(logits, expected[0].numpy(), rtol=1e-4, atol=1e-4)
