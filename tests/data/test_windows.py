import os
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.data import IGNORE, Corpus, Windows
from mambabyte.data.corpus import Share


class Memory:
    """A part of a corpus that lives in memory."""

    def __init__(self, documents: list[bytes]) -> None:
        self.content = np.frombuffer(b"".join(documents), np.uint8)
        self.offsets = np.cumsum([0, *map(len, documents)])
        self.nbytes, self.documents = len(self.content), len(documents)

    def read_into(self, out: np.ndarray, start: int) -> None:
        out[:] = self.content[start : start + len(out)]

    def document(self, index: int) -> np.ndarray:
        return self.content[self.offsets[index] : self.offsets[index + 1]]

    def name(self, index: int) -> str:
        return str(index)


def corpus_of(*shares: list[bytes], weights: tuple[int, ...] = (1,)) -> Corpus:
    parts = [Memory(documents) for documents in shares]
    stops = np.cumsum([part.nbytes for part in parts]).tolist()
    ranges = zip([0, *stops], stops, weights, strict=False)
    return Corpus(parts, [Share(str(stop), start, stop, Fraction(weight)) for start, stop, weight in ranges])


DOCUMENTS = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=10).filter(lambda d: max(map(len, d)) > 1)
FEWER = settings(max_examples=50)
SIZES = {"context": st.integers(1, 12), "batch": st.integers(1, 7), "seed": st.integers()}


def counted(documents: list[bytes]) -> list[bytes]:
    """Documents of the same lengths in which every byte is another one, so that a byte tells its position."""
    values = iter(range(256))
    return [bytes(next(values) for _ in document) for document in documents]


DISTINCT = DOCUMENTS.filter(lambda d: sum(map(len, d)) <= 256).map(counted)


@FEWER
@given(documents=DISTINCT, carry=st.booleans(), laps=st.integers(1, 3), **SIZES)
def test_each_pass_visits_every_byte_exactly_once(documents, carry, laps, context, batch, seed):
    windows = Windows(corpus_of(documents), context=context, batch=batch, seed=seed, carry=carry)
    runs = windows._shares[0].runs
    joined = b"".join(documents)
    firsts = {document[0] for document in documents}
    targets, resets = Counter(), Counter()
    draws = laps * runs
    for turn in range(-(-draws // batch)):
        rows = slice(min(batch, draws - turn * batch))
        for step in range(turn * windows.run_length, (turn + 1) * windows.run_length):
            part = windows.batch(step, rows)
            targets.update(part.targets.flatten().tolist())
            resets.update(part.inputs[part.resets].tolist())
    wanted = [byte for byte in joined if byte not in firsts]
    assert {byte: targets[byte] for byte in wanted} == dict.fromkeys(wanted, laps)
    assert not any(targets[byte] for byte in firsts)
    # Nothing follows the last byte, so whether a window has room for it as an input is left open.
    del resets[joined[-1]]
    assert resets == Counter({document[0]: laps for document in documents if document[0] != joined[-1]})


@FEWER
@given(documents=DISTINCT, carry=st.booleans(), step=st.integers(0, 40), **SIZES)
def test_a_batch_is_cut_from_the_corpus_as_documented(documents, carry, step, context, batch, seed):
    part = Windows(corpus_of(documents), context=context, batch=batch, seed=seed, carry=carry).batch(step)
    assert (part.inputs.dtype, part.targets.dtype) == (torch.uint8, torch.int64)
    assert (part.resets.dtype, part.continues.dtype) == (torch.bool, torch.bool)
    assert part.inputs.shape == part.targets.shape == part.resets.shape == (batch, context)
    firsts = {document[0] for document in documents}
    for row in range(batch):
        for position in range(context):
            target = int(part.targets[row, position])
            if target != IGNORE:
                assert target == int(part.inputs[row, position]) + 1
                assert target not in firsts
                assert bool(part.resets[row, position]) == (target - 1 in firsts)


@FEWER
@given(documents=DOCUMENTS, carry=st.booleans(), step=st.integers(0, 10**12), cuts=st.data(), **SIZES)
def test_any_split_of_the_rows_gives_the_same_batch(documents, carry, step, cuts, context, batch, seed):
    windows = Windows(corpus_of(documents), context=context, batch=batch, seed=seed, carry=carry)
    whole = windows.batch(step)
    cut = cuts.draw(st.integers(0, batch))
    for rows in (slice(cut), slice(cut, None), slice(cut, None, 2)):
        again = Windows(windows.corpus, context=context, batch=batch, seed=seed, carry=carry).batch(step, rows)
        for name in ("inputs", "targets", "resets", "continues"):
            assert torch.equal(getattr(again, name), getattr(whole, name)[rows]), name


@FEWER
@given(documents=DISTINCT, step=st.integers(1, 30), **SIZES)
def test_continues_means_that_the_row_goes_on_where_it_was(documents, step, context, batch, seed):
    windows = Windows(corpus_of(documents), context=context, batch=batch, seed=seed, carry=True)
    before, now = windows.batch(step - 1), windows.batch(step)
    for row in range(batch):
        if now.continues[row]:
            assert now.inputs[row, 0] == before.inputs[row, -1] + 1
        else:
            assert step % windows.run_length == 0 or (now.targets[row] == IGNORE).all()
    assert not Windows(windows.corpus, context=context, batch=batch, seed=seed).batch(step).continues.any()


@FEWER
@given(documents=DISTINCT, **SIZES)
def test_with_carry_a_lone_row_reads_the_corpus_in_order(documents, context, batch, seed):
    windows = Windows(corpus_of(documents), context=context, batch=1, seed=seed, carry=True)
    read = torch.cat([windows.batch(step).inputs[0] for step in range(windows.run_length)])
    joined = b"".join(documents)[:-1]
    assert bytes(read.tolist())[: len(joined)] == joined


@settings(max_examples=30)
@given(
    shares=st.lists(st.integers(2, 60), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    carry=st.booleans(),
    **SIZES,
)
def test_mixtures_follow_their_weights_and_never_cross_shares(shares, weights, carry, context, batch, seed):
    corpus = corpus_of(*([bytes([i]) * size] for i, size in enumerate(shares)), weights=tuple(weights[: len(shares)]))
    windows = Windows(corpus, context=context, batch=batch, seed=seed, carry=carry)
    drawn = Counter()
    steps = 12 * windows.run_length
    for step in range(0, steps, windows.run_length):
        part = windows.batch(step)
        for row in range(batch):
            trained = part.targets[row] != IGNORE
            seen = {*part.inputs[row][trained].tolist(), *part.targets[row][trained].tolist()}
            assert len(seen) == 1
            drawn[seen.pop()] += 1
    total = sum(weights[: len(shares)])
    for share, weight in enumerate(weights[: len(shares)]):
        assert abs(drawn[share] - 12 * batch * weight / total) < share + 1


def test_passes_and_seeds_differ_in_order():
    documents = [bytes(range(200))]
    first = Windows(corpus_of(documents), context=10, batch=20, seed=1)
    other = Windows(corpus_of(documents), context=10, batch=20, seed=2)
    assert not torch.equal(first.batch(0).inputs, first.batch(1).inputs)
    assert not torch.equal(first.batch(0).inputs, other.batch(0).inputs)


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(ValueError, match="context=0, batch=1"):
        Windows(corpus_of([b"ab"]), context=0, batch=1, seed=0)
    with pytest.raises(ValueError, match="every document is a single byte"):
        Windows(corpus_of([b"a", b"b"]), context=1, batch=1, seed=0)


def test_a_share_of_2_billion_windows_needs_no_memory(tmp_path):
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 2 * 10**12)
    windows = Windows(Corpus.open([path]), context=1000, batch=8, seed=3)
    assert windows._shares[0].windows == 2 * 10**9
    assert windows.batch(10**9).inputs.shape == (8, 1000)
