"""Subword vocabularies hold any bytes, and are learnt from a part of what is too much."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.data import Subwords, subwords
from mambabyte.data.subwords import sample
from tests.data.test_windows import corpus_of

TEXT = b"the cat sat on the mat; the dog sat on the log. caf\xc3\xa9 \xff\n" * 20
SUBWORDS = Subwords.learn([TEXT], 320)


@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=20).map(str.encode), st.sampled_from([TEXT, b"", b"  \n the"]))
)
def test_any_bytes_come_back(data):
    assert b"".join(SUBWORDS.pieces[i] for i in SUBWORDS.encode(data)) == data


def test_a_vocabulary_shortens_its_own_text_and_has_every_byte():
    assert len(SUBWORDS.encode(TEXT)) < len(TEXT) / 3
    assert {bytes([b]) for b in range(256)} <= set(SUBWORDS.pieces)
    assert len(SUBWORDS) <= 320


def test_a_vocabulary_comes_back_from_its_file(tmp_path):
    SUBWORDS.write(tmp_path / "subwords.json")
    assert Subwords.load(tmp_path).pieces == SUBWORDS.pieces
    (tmp_path / "subwords.json").write_text("{}")
    with pytest.raises(ValueError, match=r"subwords\.json"):
        Subwords.load(tmp_path)
    with pytest.raises(OSError, match="absent"):
        Subwords.load(tmp_path / "absent")


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "subwords.json"
    SUBWORDS.write(path)
    whole = json.loads(path.read_text())
    model = whole["model"]
    vocabulary = model["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    for damaged, words in (
        (b"\xff\xfe\x00", "damaged"),
        (path.read_bytes()[:500], "damaged"),
        (json.dumps(whole | {"model": model | {"vocab": vocabulary | {last: 999}}}).encode(), "ids are not 0 to 277"),
        (json.dumps(whole | {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}).encode(), "255 bytes are no"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"subwords\.json: .*{words}.*; copy the folder again"):
            Subwords.load(tmp_path)


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_what_comes_before_the_last_word_is_cut_alike_whatever_follows(data, more):
    start = Subwords.last_word(data)
    before = SUBWORDS.encode(data[:start])
    assert SUBWORDS.encode(data + more)[: len(before)] == before


@given(st.sampled_from([b"ACGT", b" ", b"!?", "\u4f60\u597d".encode()]), st.integers(0, 300), st.binary(max_size=9))
def test_a_word_without_an_end_begins_anew(letters, count, before):
    """(It was once read from its beginning for every guess: 10 GB and 25 s for 50,000 bytes.)"""
    data = before + letters * count
    start = Subwords.last_word(data)
    assert len(data) - start <= subwords.LONGEST_WORD
    assert Subwords.last_word(data[start:]) == 0


def test_a_vocabulary_has_room_for_the_bytes():
    with pytest.raises(ValueError, match="at least 256"):
        Subwords.learn([TEXT], 200)


def test_what_was_cut_before_is_cut_the_same_when_words_are_forgotten(monkeypatch):
    once = SUBWORDS.encode(TEXT)
    assert SUBWORDS.encode(TEXT) == once
    monkeypatch.setattr(subwords, "WORDS_KEPT", 3)
    assert [SUBWORDS.encode(TEXT) for _ in range(3)] == [once] * 3
    long = b"a" * 500
    assert b"".join(SUBWORDS.pieces[i] for i in SUBWORDS.encode(long)) == long


@settings(max_examples=60)
@given(
    documents=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5),
    most=st.integers(0, 700),
    piece=st.integers(1, 40),
)
def test_a_sample_is_spread_over_the_corpus_and_no_larger_than_asked(documents, most, piece):
    whole = b"".join(documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subwords, "PIECE", piece)
        pieces = list(sample(corpus_of(documents), most))
    if len(whole) <= most:
        assert b"".join(pieces) == whole
        return
    assert sum(map(len, pieces)) <= most
    assert sum(map(len, pieces)) > most - piece
    assert all(part in whole for part in pieces)
    if len(pieces) > 1:
        assert whole.startswith(pieces[0])
        assert whole.endswith(pieces[-1])


def test_a_sample_follows_the_weights_of_a_mixture():
    corpus = corpus_of([b"a" * 3000], [b"b" * 3000], weights=(3, 1))
    text = b"".join(sample(corpus, 400))
    assert (text.count(b"a"), text.count(b"b")) == (300, 100)


def test_a_vocabulary_of_a_corpus_is_that_of_its_text():
    assert Subwords.of(corpus_of([TEXT]), 320).pieces == SUBWORDS.pieces
