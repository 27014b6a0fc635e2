"""Windows of subwords score the bytes that windows of bytes score, each once."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.data import IGNORE, Subwords, SubwordWindows, Windows
from tests.data.test_windows import DOCUMENTS, SIZES, corpus_of

SUBWORDS = Subwords.learn([b"the cat sat on the mat \x00\x00\x01\x01" * 9], 300)


@settings(max_examples=60, deadline=None)
@given(
    documents=st.one_of(DOCUMENTS, st.just([b"the cat sat", b"\n", b"on the mat on the mat"])),
    step=st.integers(0, 9),
    **SIZES,
)
def test_the_targets_spell_what_a_byte_model_is_scored_on(documents, step, context, batch, seed):
    windows = Windows(corpus_of(documents), context=context, batch=batch, seed=seed)
    of_bytes, cut = windows.batch(step), SubwordWindows(windows, SUBWORDS).batch(step)
    assert cut.inputs.shape == cut.targets.shape == cut.resets.shape
    assert cut.bytes.tolist() == (of_bytes.targets != IGNORE).sum(1).tolist()
    for row in range(batch):
        scored = cut.targets[row] != IGNORE
        spelt = b"".join(SUBWORDS.pieces[i] for i in cut.targets[row][scored].tolist())
        assert spelt == bytes(of_bytes.targets[row][of_bytes.targets[row] != IGNORE].tolist())
        inputs, targets, first = cut.inputs[row].tolist(), cut.targets[row].tolist(), cut.resets[row].tolist()
        for i in range(1, int(scored.sum())):
            assert first[i] or inputs[i] == targets[i - 1], "a document is read as it is scored"
        assert not any(first[int(scored.sum()) :])


def test_a_document_begins_with_a_byte_and_a_reset():
    windows = Windows(corpus_of([b"the cat", b"the mat"]), context=14, batch=1, seed=0)
    batch = SubwordWindows(windows, SUBWORDS).batch(0)
    at = batch.resets[0].nonzero().flatten().tolist()
    assert [SUBWORDS.pieces[i] for i in batch.inputs[0, at].tolist()] == [b"t", b"t"]
    assert Counter(batch.inputs[0].tolist())[SUBWORDS.numbers[b"t"]] == 2


def test_a_state_cannot_be_carried_over_rows_of_different_lengths():
    windows = Windows(corpus_of([b"the cat sat"]), context=4, batch=1, seed=0, carry=True)
    with pytest.raises(ValueError, match="carried on"):
        SubwordWindows(windows, SUBWORDS)


def test_rows_can_be_asked_for_alone():
    windows = SubwordWindows(
        Windows(corpus_of([b"the cat sat on the mat " * 9]), context=20, batch=4, seed=0), SUBWORDS
    )
    whole, part = windows.batch(1), windows.batch(1, slice(2, 4))
    width = part.inputs.shape[1]
    assert part.targets.tolist() == whole.targets[2:, :width].tolist()
