"""A subword drafter changes the time and not the bytes."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.data import Subwords
from mambabyte.generation import decoder, generate, stream
from mambabyte.generation.constraints import utf8
from mambabyte.generation.cursor import Cursor
from mambabyte.generation.engine import open_engine
from mambabyte.generation.sampling import Sampler, Sampling
from mambabyte.generation.sorted_pieces import SortedPieces
from mambabyte.generation.speculation import Confidence
from mambabyte.generation.subword_drafter import SubwordDrafter, SubwordGuesser, mixture, narrowed, weigh
from tests.generation.conftest import tiny_model

TEXT = b"the cat sat on the mat; the dog sat on the log. caf\xc3\xa9 \xff\n" * 20
SUBWORDS = Subwords.learn([TEXT], 320)


@given(st.binary(max_size=4), st.sampled_from(SUBWORDS.pieces))
def test_pieces_with_a_beginning_are_found_and_summed(data, piece):
    pieces = SortedPieces(SUBWORDS.pieces)
    weights = np.arange(1, len(SUBWORDS) + 1, dtype=np.float32)
    for beginning in (data, piece, piece[:1], piece + data):
        expected = Counter()
        for p, weight in zip(pieces.pieces, weights, strict=True):
            if p.startswith(beginning):
                expected[None if p == beginning else p[len(beginning)]] += float(weight)
        found = pieces.beginnings.get(beginning)
        assert (found is None) == (not expected)
        if found is not None:
            assert weights[found.where].sum() == expected.total()
            assert found.ended(weights) == expected.pop(None, 0)
            assert weights[found.longer].sum() == expected.total()
            assert dict(zip(found.nexts.tolist(), found.by_next(weights).tolist(), strict=True)) == expected
            assert found.after == {byte: pieces.beginnings[beginning + bytes((byte,))] for byte in found.nexts}


@pytest.fixture(scope="module")
def drafter():
    return SubwordDrafter(tiny_model(seed=6, vocab_size=len(SUBWORDS)), SUBWORDS)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {}, {"top_k": 9, "constraint": utf8()}], ids=["greedy", "plain", "utf8"]
)
def test_the_bytes_are_those_of_plain_decoding(model, drafter, sampling):
    options = {"max_bytes": 40, "seed": 3, **sampling}
    prompts = [b"", b"the cat s", TEXT, b"\xff\x00"]
    assert generate(model, prompts, drafter=drafter, **options) == generate(model, prompts, **options)


def test_an_untrained_drafter_still_reports_its_share(model, drafter):
    pieces = stream(model, b"the cat", max_bytes=30, drafter=drafter, seed=1)
    assert len(b"".join(pieces)) == 30
    report = pieces.statistics.to_dict()
    assert report["drafted"] > 0
    assert 0 < report["drafter_share"] < 1


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12), st.binary(min_size=1, max_size=2)), max_size=6))
def test_the_state_follows_what_was_decided(rounds):
    """After any guesses, right up to any place, the guesser's state has read what one's has that reads all the text at
    once: the words that have ended, as the vocabulary cuts them. (It once kept the model's own cut, and guessed badly.)
    """
    model = tiny_model(seed=6, vocab_size=len(SUBWORDS))
    drafter = SubwordDrafter(model, SUBWORDS, engine=open_engine(model, outputs=len(SUBWORDS)))
    guesser, text = drafter.begin(b"the cat sat"), b"the cat sat"
    for count, right, wrong in rounds:
        guess = guesser.guess(count, Cursor(Sampler(Sampling(), 0), left=99), Confidence([0.5] + [1.0] * 7, 0.8, 0.8))
        assert len(guess) <= count
        decided = guess[:right] + wrong
        guesser.read(decided)
        text += decided
    fresh = drafter.begin(text)
    guesser._catch_up(Confidence([1.0] * 8, 0.0, 0.0))
    assert guesser._rest == fresh._rest == text[SUBWORDS.last_word(text) :]
    ours, theirs = guesser._boundaries[0], fresh._boundaries[0]
    assert (ours.path, ours.end, ours.chance) == (theirs.path, 0, 1.0)
    np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "word", [b"a" * 200, np.random.default_rng(0).integers(97, 123, 200, np.uint8).tobytes()], ids=["run", "letters"]
)
def test_each_byte_of_a_long_word_is_judged_once(word, monkeypatch):
    """However long the word is, a byte that was decided costs one judgement, and not one in every guess after it."""
    judged, expand = Counter(), SubwordGuesser._expand

    def counting(guesser, outlooks, text, *rest, **options):
        judged["decided" if len(text) < len(guesser._rest) else "guessed"] += 1
        return expand(guesser, outlooks, text, *rest, **options)

    monkeypatch.setattr(SubwordGuesser, "_expand", counting)
    guesser = SubwordDrafter(tiny_model(seed=6, vocab_size=len(SUBWORDS)), SUBWORDS).begin(b"the ")
    for byte in word:
        guesser.guess(2, Cursor(Sampler(Sampling(), 0), left=99), Confidence([1.0] * 8, 0.0, 0.0))
        guesser.read(bytes((byte,)))
    assert 0 < judged["decided"] <= len(word)


def test_a_word_is_a_mixture_over_its_cuts():
    """The next byte's weights are those of all ways to cut the word so far, each with its probability."""
    model = tiny_model(seed=6, vocab_size=len(SUBWORDS))
    engine = open_engine(model, outputs=len(SUBWORDS))
    guesser = SubwordDrafter(model, SUBWORDS, engine=engine).begin(b"sat on th")
    assert guesser._rest == b" th"

    def subwords(path):
        row = engine.join(model.init_state())
        logits = engine.read([row], [[*SUBWORDS.encode(b"sat on"), *path]])[0][-1].astype(np.float64)
        engine.leave(row)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def ways(rest, path=(), chance=1.0):
        """(chance of the cut, path, what is left of the word) of every cut into whole subwords and a beginning."""
        yield chance, path, rest
        weights = subwords(path)
        for length in range(1, len(rest) + 1):
            if rest[:length] in SUBWORDS.numbers:
                number = SUBWORDS.numbers[rest[:length]]
                yield from ways(rest[length:], (*path, number), chance * weights[number])

    expected = np.zeros(256)
    for chance, path, rest in ways(b" th"):
        weights = subwords(path)
        for number, piece in enumerate(SUBWORDS.pieces):
            if piece.startswith(rest) and len(piece) > len(rest):
                expected[piece[len(rest)]] += chance * weights[number]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mambabyte.generation.subword_drafter.SHARE", 0.0)
        confidence = Confidence([1.0] * 8, 0.0, 0.0)
        guesser._catch_up(confidence)
        outlooks = guesser._outlooks(b" th")
        assert guesser._expand(outlooks, b" th", None, confidence)
        weights = mixture(outlooks)
    np.testing.assert_allclose(weights / weights.sum(), expected / expected.sum(), rtol=0.05, atol=0.02)
    assert outlooks[0][0].chance * weights.sum() == pytest.approx(weigh(outlooks), rel=1e-4)
    byte = int(weights.argmax())
    assert outlooks[0][0].chance * weights[byte] == pytest.approx(weigh(narrowed(outlooks, byte)), rel=1e-4)


def test_a_trained_drafter_is_right_often(monkeypatch):
    """A byte model and a subword model that overfit two sentences: most of what is guessed is accepted.

    A clock of even ticks: how far to guess depends on what it takes, and on a busy machine so would this.
    """
    monkeypatch.setattr(decoder, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    sentence = b"the cat sat on the mat; the dog sat on the log. " * 8
    byte_model, subword_model = tiny_model(gain=1.0), tiny_model(seed=1, vocab_size=len(SUBWORDS), gain=1.0)
    fit(byte_model, list(sentence))
    fit(subword_model, SUBWORDS.encode(sentence))
    for options in ({"temperature": 0.0}, {"seed": 0}):
        plain = generate(byte_model, b"the cat sat on the ", max_bytes=60, **options)
        pieces = stream(
            byte_model, b"the cat sat on the ", max_bytes=60, drafter=SubwordDrafter(subword_model, SUBWORDS), **options
        )
        assert b"".join(pieces) == plain
        report = pieces.statistics.to_dict()
        assert report["acceptance"] > 0.6
        assert report["bytes_per_pass"] > 1


def fit(model, ids):
    ids = torch.tensor([ids])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        logits, _ = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
