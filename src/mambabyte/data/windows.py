"""Training windows: row `row` of step `step` as a pure function of the seed, whoever asks and in whatever order."""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mambabyte.data.corpus import Corpus, Share
from mambabyte.data.mixture import Mixture
from mambabyte.data.order import Order, choose_order, pass_key

IGNORE = -100  # the target that torch's cross entropy leaves out


@dataclass(frozen=True)
class Batch:
    """b windows of L ids, each a byte (or a subword: see `SubwordWindows`).

    inputs (b, L) unsigned integers; targets (b, L) int64, the id that follows each input, or -100 where it begins
    another document or does not exist; resets (b, L) bool, true where the input is a document's first; continues (b,)
    bool, true where the row's window begins where its window of the step before ended, so that its state may be
    carried on; bytes (b,) int64, how many bytes the targets of a row spell. A batch may hold no target at all, for
    instance one-byte windows that all end a document.
    """

    inputs: Tensor
    targets: Tensor
    resets: Tensor
    continues: Tensor
    bytes: Tensor

    def rows(self, rows: slice) -> Self:
        """Some of the rows, as views."""
        parts = (self.inputs, self.targets, self.resets, self.continues, self.bytes)
        return type(self)(*(part[rows] for part in parts))


class Batches(Protocol):
    """The endless sequence of batches that a run learns from."""

    def batch(self, step: int, rows: slice = ...) -> Batch:
        """The chosen rows of step `step`, the same whenever they are asked for."""
        ...


class Windows:
    """The endless sequence of batches that a corpus, a seed and these sizes define.

    A corpus (each share of a mixture) is cut every `context` bytes into windows; documents may end inside them. One
    pass visits each window once, so each byte once, in an order shuffled afresh for every pass; the next pass begins
    right where one ends, also in the middle of a batch. The last window of a share may be shorter: it is filled up
    with zero bytes that have no target.

    With `carry` the unit of the shuffle is a run of consecutive windows, which a row reads step by step before it turns
    to another: runs are as long as they can be while every row has one in each pass.
    """

    def __init__(self, corpus: Corpus, *, context: int, batch: int, seed: int, carry: bool = False) -> None:
        if context < 1 or batch < 1:
            raise ValueError(f"context={context}, batch={batch}: both must be at least 1")
        if corpus.nbytes == corpus.documents:
            raise ValueError("every document is a single byte, which leaves nothing to predict; name longer data")
        self.corpus = corpus
        self.context, self.batch_size, self.seed, self.carry = context, batch, seed, carry
        self._mixture = Mixture([share.weight for share in corpus.shares])
        windows = [_count_windows(share, context) for share in corpus.shares]
        self.run_length = self._longest_run(windows) if carry else 1
        self._shares = [_ShareRuns(*pair, self.run_length) for pair in zip(corpus.shares, windows, strict=True)]
        self.order: Order = choose_order()

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The chosen rows of step `step`. Raises ValueError, naming the file, if a file has changed."""
        wanted = range(*rows.indices(self.batch_size))
        flat = np.zeros((len(wanted), self.context + 1), np.uint8)
        first = np.zeros((len(wanted), self.context + 1), np.bool_)
        known = np.zeros(len(wanted), np.int64)
        continues = np.zeros(len(wanted), np.bool_)
        for i, row in enumerate(wanted):
            start, stop = self._span(step, row)
            known[i] = stop - start
            self.corpus.read_into(flat[i, : stop - start], start)
            first[i, self.corpus.document_starts(start, stop) - start] = True
            continues[i] = step % self.run_length > 0 and stop > start
        untrained = first[:, 1:] | (np.arange(1, self.context + 1) >= known[:, None])
        return Batch(
            inputs=torch.from_numpy(flat[:, :-1].copy()),
            targets=torch.from_numpy(np.where(untrained, IGNORE, flat[:, 1:].astype(np.int64))),
            resets=torch.from_numpy(first[:, :-1].copy()),
            continues=torch.from_numpy(continues),
            bytes=torch.from_numpy((~untrained).sum(1)),
        )

    def _span(self, step: int, row: int) -> tuple[int, int]:
        """Where a window begins and where its last target ends, in corpus positions; empty past the end of a run."""
        turn, progress = divmod(step, self.run_length)
        number, draw = self._mixture(turn * self.batch_size + row)
        share = self._shares[number]
        lap, index = divmod(draw, share.runs)
        run = self.order(index, share.runs, pass_key(self.seed, number, lap))
        return share.span(run, progress, self.context)

    def _longest_run(self, windows: list[int]) -> int:
        """The most consecutive windows per run that give every row at least one run in a pass of any share."""
        weights = [share.weight for share in self.corpus.shares]
        rows = [self.batch_size * weight / sum(weights) for weight in weights]
        return min(min(count, -(-count // share)) for count, share in zip(windows, rows, strict=True))


@dataclass(frozen=True)
class _ShareRuns:
    """A share's windows dealt to runs whose lengths differ by at most one."""

    share: Share
    windows: int
    run_length: int

    @property
    def runs(self) -> int:
        return -(-self.windows // self.run_length)

    def span(self, run: int, progress: int, context: int) -> tuple[int, int]:
        window = run * self.windows // self.runs + progress
        if window == (run + 1) * self.windows // self.runs:
            return self.share.stop, self.share.stop
        start = self.share.start + window * context
        return start, min(start + context + 1, self.share.stop)


def _count_windows(share: Share, context: int) -> int:
    return max(1, -(-(share.stop - share.start - 1) // context))
