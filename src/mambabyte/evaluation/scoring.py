"""The bits of every byte: runs packed into the rows of a batch, the state carried from one chunk to the next.

Rows read their runs one after another, with a reset where a run begins, so that short documents fill a batch and a
document of any size needs the memory of one chunk.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mambabyte.evaluation.plan import Plan, Run
from mambabyte.models.byte_lm import DOCUMENT_START, ByteLM, ByteLMState

ROWS = 8
POSITIONS = 8192  # run at once, over all rows: 8 MB of logits


class Documents(Protocol):
    """What is scored: a `mambabyte.data.Corpus`, or anything else with these three."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each document begins, and the end of the last: (documents + 1,)."""

    @property
    def names(self) -> Sequence[str]:
        """What to call each document."""

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes [start, stop) of all documents end to end."""


@dataclasses.dataclass(frozen=True)
class Bits:
    """-log2 p of consecutive bytes of one document, from its byte `start`."""

    document: int
    start: int
    bits: NDArray[np.float64]


@torch.no_grad()
def score(
    model: ByteLM, corpus: Documents, plan: Plan, *, batch: int | None = None, chunk: int | None = None
) -> Iterator[Bits]:
    """The bits of every byte of a corpus, each byte once; the pieces of a document come in its order.

    Args:
        model: read in its compute dtype on its own device; the softmax is float32 at least.
        corpus: the documents.
        plan: what the model has read before each byte.
        batch: rows read side by side, 8 unless given.
        chunk: bytes of a row read at once; unless given, the rows share 8192. Neither changes a result beyond float
            rounding.

    Raises ValueError where the model gives a byte no finite number of bits.
    """
    rows = ROWS if batch is None else batch
    for name, value in (("batch", rows), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    sizes = np.diff(corpus.offsets)
    longest_first = np.argsort(-sizes, kind="stable")  # so that no long document is left to run alone at the end
    queue = plan.runs((int(i), int(sizes[i])) for i in longest_first)
    readers = list(itertools.takewhile(_Reader.unfinished, (_Reader(corpus, queue) for _ in range(rows))))
    state = model.init_state(len(readers))
    was_training = model.training
    model.eval()
    try:
        while readers:
            page = _Page(len(readers), chunk or max(1, POSITIONS // len(readers)))
            spans = [span for row, reader in enumerate(readers) for span in reader.fill(page, row)]
            bits, state = _bits(model, page, state)
            for span in spans:
                found = bits[span.row, span.column : span.column + span.count]
                yield check_finite(Bits(span.document, span.start, found), corpus)
            alive = [row for row, reader in enumerate(readers) if reader.unfinished()]
            if 0 < len(alive) < len(readers):
                state = state.rows(alive)
            readers = [readers[row] for row in alive]
    finally:
        model.train(was_training)


def _bits(model: ByteLM, page: "_Page", state: ByteLMState) -> tuple[NDArray[np.float64], ByteLMState]:
    """-log2 p of each target of the page, (rows, width), and the state after it."""
    device = model.embedding.weight.device
    width = int(page.filled.max())
    inputs, targets, resets = (
        torch.from_numpy(array[:, :width]).to(device) for array in (page.inputs, page.targets, page.resets)
    )
    logits, state = model(inputs, state, resets=resets if page.resets.any() else None)
    if logits.dtype != torch.float64:
        logits = logits.float()
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none")
    return (nats.double() / math.log(2)).view(targets.shape).cpu().numpy(), state


def check_finite(piece: Bits, corpus: Documents) -> Bits:
    """The piece itself. Raises ValueError, naming the byte, where a number of bits is not finite."""
    finite = np.isfinite(piece.bits)
    if not finite.all():
        at = piece.start + int(np.argmin(finite))
        raise ValueError(
            f"the model gives byte {at} of {corpus.names[piece.document]} no finite number of bits: its logits "
            "overflow or its weights are damaged; try float32, or an earlier checkpoint"
        )
    return piece


@dataclasses.dataclass(frozen=True)
class _Span:
    """Where `count` scored bytes of a document, from its byte `start`, lie on a page."""

    document: int
    start: int
    row: int
    column: int
    count: int


class _Page:
    """What the model reads at once, (rows, length), and how much of each row is filled."""

    def __init__(self, rows: int, length: int) -> None:
        self.inputs = np.zeros((rows, length), np.uint8)
        self.targets = np.zeros((rows, length), np.uint8)
        self.resets = np.zeros((rows, length), np.bool_)
        self.filled = np.zeros(rows, np.int64)


class _Reader:
    """One row of the batch: takes runs from the queue that all rows share and reads them one after another."""

    def __init__(self, corpus: Documents, queue: Iterator[Run]) -> None:
        self.corpus = corpus
        self.queue = queue
        self.run: Run | None = None
        self.position = 0

    def unfinished(self) -> bool:
        """Whether a byte is left to read; takes the next run when the last is done."""
        if self.run is None or self.position == self.run.stop:
            self.run = next(self.queue, None)
            self.position = 0 if self.run is None else self.run.start
        return self.run is not None

    def fill(self, page: _Page, row: int) -> Iterator[_Span]:
        """Writes the next bytes into a row of the page and yields the spans that count."""
        column, length = 0, page.inputs.shape[1]
        while column < length and self.unfinished():
            run, start = self.run, self.position
            assert run is not None
            count = min(length - column, run.stop - start)
            self._copy(page, row, column, start, count)
            skipped = min(count, max(0, run.scored - start))
            if skipped < count:
                yield _Span(run.document, start + skipped, row, column + skipped, count - skipped)
            column += count
            self.position += count
        page.filled[row] = column

    def _copy(self, page: _Page, row: int, column: int, start: int, count: int) -> None:
        """Bytes [start, start + count) of the run's document as targets, the bytes before them as inputs."""
        assert self.run is not None
        begin = int(self.corpus.offsets[self.run.document]) + start
        here = np.s_[row, column : column + count]
        if start > 0:
            stretch = self.corpus.read(begin - 1, begin + count)
            page.inputs[here], page.targets[here] = stretch[:-1], stretch[1:]
        else:
            page.targets[here] = self.corpus.read(begin, begin + count)
            page.inputs[row, column] = DOCUMENT_START[0]
            page.inputs[here][1:] = page.targets[here][:-1]
        page.resets[row, column] = start == self.run.start
