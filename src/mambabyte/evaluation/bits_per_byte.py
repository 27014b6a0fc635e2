"""Bits per byte of files under a model, with words and xz beside them."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambabyte.data import Corpus
from mambabyte.evaluation import subword_scoring
from mambabyte.evaluation.plan import Mode, Plan
from mambabyte.evaluation.report import FileReport, Report
from mambabyte.evaluation.scoring import Bits, score
from mambabyte.evaluation.yardsticks import count_words, xz_size
from mambabyte.models import ByteLM, SubwordLM

PIECE = 1 << 20  # bytes of a file held at once while its words are counted and xz reads it

Paths = str | Path | Sequence[str | Path]


def evaluate(
    model: ByteLM | SubwordLM,
    paths: Paths | Corpus,
    *,
    mode: Mode = "stream",
    context: int | None = None,
    stride: int | None = None,
    batch: int | None = None,
    chunk: int | None = None,
    xz: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Bits per byte of files, each a document, every byte of them scored exactly once.

    The first byte of a document is scored from the model's distribution after one newline (0x0A) from the zero state,
    so no byte is free and no vocabulary entry is spent on a document's start.

    Args:
        model: read on its own device in its compute dtype; sums are float64. A model of subwords pays for those that
            its vocabulary cuts the text into, and reads in the mode "stream" only.
        paths: files, folders and globs, or an open corpus.
        mode: "stream" carries the state over the whole document. "window" cuts it into windows of `context` bytes, each
            read from the zero state; the first byte of a later window is scored from the one byte before it. "sliding"
            reads a window every `stride` bytes and scores only the last `stride` bytes of all but the first.
        context: bytes of a window, 8192 unless given; the mode "stream" has none.
        stride: bytes from one window of "sliding" to the next, half the context unless given.
        batch: rows read side by side.
        chunk: bytes of a row read at once. Memory follows batch * chunk, whatever the size of the files.
        xz: also compress each file with xz -9.
        progress: called with the number of bytes scored since the last call.

    Raises ValueError for a mode, context or stride that does not fit, for paths that hold no byte, and where the model
    gives a byte no finite number of bits.
    """
    plan = Plan(mode=mode, context=context, stride=stride)
    corpus = _corpus(paths)
    began = time.perf_counter()
    bits = np.zeros(corpus.documents, np.float64)
    for piece in _scored(model, corpus, plan, batch, chunk):
        bits[piece.document] += piece.bits.sum()
        if progress is not None:
            progress(len(piece.bits))
    seconds = time.perf_counter() - began
    return Report(
        empty_files=corpus.empty,
        files=tuple(_file_report(corpus, i, float(bits[i]), xz) for i in range(corpus.documents)),
        mode=plan.mode,
        **plan.reported,
        seconds=seconds,
    )


def evaluator(
    paths: Paths | Corpus,
    *,
    mode: Mode = "stream",
    context: int | None = None,
    stride: int | None = None,
    batch: int | None = None,
    chunk: int | None = None,
) -> Callable[[ByteLM | SubwordLM], dict[str, float]]:
    """A function of a model, for a training loop to call: its bits per byte on fixed files, as `evaluate` counts them.

    The files are opened now, so that a missing one is found before the training.
    """
    corpus = _corpus(paths)

    def bits_per_byte(model: ByteLM | SubwordLM) -> dict[str, float]:
        report = evaluate(model, corpus, mode=mode, context=context, stride=stride, batch=batch, chunk=chunk, xz=False)
        return {"bits_per_byte": report.bits_per_byte}

    return bits_per_byte


def _scored(
    model: ByteLM | SubwordLM, corpus: Corpus, plan: Plan, batch: int | None, chunk: int | None
) -> Iterator[Bits]:
    if isinstance(model, ByteLM):
        return score(model, corpus, plan, batch=batch, chunk=chunk)
    if plan.mode != "stream":
        raise ValueError(f"a model of subwords is evaluated in the mode stream, not {plan.mode}")
    return subword_scoring.score(model, corpus)


def _corpus(paths: Paths | Corpus) -> Corpus:
    if isinstance(paths, Corpus):
        return paths
    return Corpus.open([paths] if isinstance(paths, str | Path) else paths)


def _file_report(corpus: Corpus, i: int, bits: float, xz: bool) -> FileReport:
    start, stop = corpus.offsets[i : i + 2].tolist()
    return FileReport(
        name=corpus.names[i],
        bytes=stop - start,
        bits=bits,
        words=count_words(_pieces(corpus, start, stop)),
        xz_bytes=xz_size(_pieces(corpus, start, stop)) if xz else None,
    )


def _pieces(corpus: Corpus, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    return (corpus.read(here, min(here + PIECE, stop)) for here in range(start, stop, PIECE))
