import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mambabyte as mb
from mambabyte.data import Corpus, Subwords
from mambabyte.evaluation import Report, evaluate, evaluator, subword_scoring
from mambabyte.evaluation.plan import Plan
from mambabyte.models import SubwordLM
from tests.evaluation.examples import bits_of, small_model
from tests.generation.conftest import tiny_model

MODEL = small_model()
DOCUMENTS = {"a.txt": b"two words\n", "b.bin": bytes(range(256)), "d.one": b"x", "e.txt": b"a b c " * 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, document in DOCUMENTS.items():
        (tmp_path / name).write_bytes(document)
    (tmp_path / "c.empty").touch()
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"mode": "window", "context": 33}, {"mode": "sliding", "context": 32}])
def test_totals_are_sums_over_bytes(folder: Path, options: dict) -> None:
    report = evaluate(MODEL, folder, xz=False, **options)
    bits = bits_of(MODEL, list(DOCUMENTS.values()), Plan(**options))
    assert [Path(file.name).name for file in report.files] == list(DOCUMENTS)
    for file, own in zip(report.files, bits, strict=True):
        assert file.bytes == len(own)
        assert file.bits_per_byte == pytest.approx(own.mean())
    every = np.concatenate(bits)
    assert report.bytes == len(every) == sum(map(len, DOCUMENTS.values()))
    assert report.bits_per_byte == pytest.approx(every.mean())
    assert report.empty_files == 1


def test_the_modes_agree_when_a_window_holds_every_file(folder: Path) -> None:
    stream = evaluate(MODEL, folder, xz=False)
    for mode in ("window", "sliding"):
        assert evaluate(MODEL, folder, mode=mode, xz=False).bits_per_byte == pytest.approx(stream.bits_per_byte)


def test_a_report_says_how_it_was_measured(folder: Path) -> None:
    def settings(report: Report) -> tuple:
        return report.mode, report.context, report.stride

    assert settings(evaluate(MODEL, folder, xz=False)) == ("stream", None, None)
    assert settings(evaluate(MODEL, folder, xz=False, mode="window", context=64)) == ("window", 64, None)
    assert settings(evaluate(MODEL, folder, xz=False, mode="sliding", context=64)) == ("sliding", 64, 32)
    assert settings(evaluate(MODEL, folder, xz=False, mode="sliding", context=64, stride=8)) == ("sliding", 64, 8)


def test_word_perplexity_is_per_word_of_the_same_bits(folder: Path) -> None:
    report = evaluate(MODEL, folder / "e.txt", xz=False)
    assert report.words == 120
    assert report.word_perplexity == pytest.approx(math.exp(report.bits * math.log(2) / 120))
    assert evaluate(MODEL, folder, xz=False).words == sum(len(document.split()) for document in DOCUMENTS.values())


def test_without_words_or_beyond_floats_there_is_no_word_perplexity(tmp_path: Path) -> None:
    (tmp_path / "blank").write_bytes(b" \n\t")
    (tmp_path / "dense").write_bytes(b"x" * 5000)
    for name in ("blank", "dense"):
        report = evaluate(MODEL, tmp_path / name, xz=False)
        assert report.word_perplexity is None


def test_xz_compresses_each_file_alone(folder: Path) -> None:
    import lzma

    report = evaluate(MODEL, folder)
    sizes = [len(lzma.compress(document, preset=9)) for document in DOCUMENTS.values()]
    assert report.xz_bits_per_byte == pytest.approx(8 * sum(sizes) / report.bytes)
    for file, size in zip(report.files, sizes, strict=True):
        assert file.xz_bits_per_byte == pytest.approx(8 * size / file.bytes)
    assert evaluate(MODEL, folder, xz=False).xz_bits_per_byte is None


def test_a_report_is_plain_json(folder: Path) -> None:
    report = evaluate(MODEL, folder)
    result = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert result["bits_per_byte"] == report.bits_per_byte
    assert result["bytes"] == report.bytes
    assert result["xz_bits_per_byte"] == report.xz_bits_per_byte
    assert [file["bytes"] for file in result["files"]] == [file.bytes for file in report.files]
    assert result["empty_files"] == 1
    assert result["bytes_per_second"] == pytest.approx(report.bytes / result["seconds"])


def test_paths_and_an_open_corpus_are_the_same(folder: Path) -> None:
    paths = sorted(folder.iterdir())
    expected = evaluate(MODEL, folder, xz=False).bits_per_byte
    for source in (paths, [str(path) for path in paths], str(folder), Corpus.open([folder])):
        assert evaluate(MODEL, source, xz=False).bits_per_byte == expected
    assert mb.evaluate is evaluate


def test_progress_counts_every_byte_once(folder: Path) -> None:
    counts: list[int] = []
    report = evaluate(MODEL, folder, mode="sliding", context=16, xz=False, progress=counts.append)
    assert sum(counts) == report.bytes


def test_an_evaluator_measures_each_model_it_is_given(folder: Path) -> None:
    measure = evaluator(folder, mode="window", context=50)
    expected = evaluate(MODEL, folder, mode="window", context=50, xz=False).bits_per_byte
    assert measure(MODEL) == {"bits_per_byte": expected}
    other = small_model()
    other.head.weight.data.zero_()
    assert measure(other) == {"bits_per_byte": pytest.approx(8)}


def test_nothing_to_score_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        evaluate(MODEL, tmp_path)


@pytest.fixture
def drafter() -> SubwordLM:
    subwords = Subwords.learn([b"the cat sat on the mat. " * 9], 280)
    return SubwordLM(tiny_model(vocab_size=len(subwords), gain=1.0), subwords)


def test_subwords_cost_what_the_whole_forward_says(drafter: SubwordLM, tmp_path: Path) -> None:
    documents = [b"the cat sat", b"\n", b"on the mat \xff\x00 the cat"]
    for i, document in enumerate(documents):
        (tmp_path / str(i)).write_bytes(document)
    report = evaluate(drafter, tmp_path, xz=False)
    assert [file.bytes for file in report.files] == [len(document) for document in documents]
    for file, document in zip(report.files, documents, strict=True):
        ids = drafter.subwords.encode(b"\n")[:1] + drafter.subwords.encode(document)
        with torch.no_grad():
            logits, _ = drafter.model(torch.tensor([ids[:-1]]))
        nats = torch.nn.functional.cross_entropy(logits[0], torch.tensor(ids[1:]), reduction="sum")
        assert file.bits == pytest.approx(float(nats) / math.log(2), rel=1e-4)


def test_pieces_and_pages_of_subwords_change_only_where_a_text_is_cut(
    drafter: SubwordLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"the cat sat on the mat. " * 40)
    (tmp_path / "b").write_bytes(b"on the mat")
    whole = evaluate(drafter, tmp_path, xz=False)
    monkeypatch.setattr(subword_scoring, "POSITIONS", 7)
    paged = evaluate(drafter, tmp_path, xz=False)
    assert [file.bits for file in paged.files] == pytest.approx([file.bits for file in whole.files], rel=1e-4)
    monkeypatch.setattr(subword_scoring, "PIECE", 24 * 8)
    seen = []
    cut = evaluate(drafter, tmp_path, xz=False, progress=seen.append)
    assert cut.bits == pytest.approx(whole.bits, rel=0.1)
    assert sum(seen) == 24 * 40 + 10


def test_subwords_are_read_as_a_stream(drafter: SubwordLM, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"the cat")
    with pytest.raises(ValueError, match="mode stream, not window"):
        evaluate(drafter, tmp_path, mode="window")
