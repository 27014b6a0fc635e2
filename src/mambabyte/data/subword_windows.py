"""Windows of bytes cut into subwords: what a subword drafter learns from."""

import numpy as np
import torch

from mambabyte.data.subwords import Subwords
from mambabyte.data.windows import IGNORE, Batch, Windows

MULTIPLE = 64  # lengths of a batch are rounded up to it, so that few sizes of memory are asked for


class SubwordWindows:
    """The batches of `windows`, each row cut into subwords.

    The windows, and so `context`, stay in bytes: the order, what a pass visits and what is scored are those of the
    bytes, and a row holds `context` subwords at most, about a quarter of them for text. A window's first byte, and
    each document's, is a subword of its own; the bytes after it are cut. So every byte that a byte model is scored on
    is spelt by a target, and every pass scores it once. Rows are filled up to the longest with ids that have no target,
    after which no state can be carried on: ValueError for windows that do so.
    """

    def __init__(self, windows: Windows, subwords: Subwords) -> None:
        if windows.carry:
            raise ValueError("rows of subwords have different lengths, so that no state can be carried on")
        self._windows, self._subwords = windows, subwords
        self._single = [subwords.numbers[bytes((byte,))] for byte in range(256)]

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """See `Batches.batch`. Raises ValueError, naming the file, if a file has changed."""
        windows = self._windows.batch(step, rows)
        documents = [self._documents(windows.rows(slice(row, row + 1))) for row in range(len(windows.inputs))]
        longest = max(sum(len(ids) - 1 for _, ids in row) for row in documents)
        shape = len(documents), MULTIPLE * max(1, -(-longest // MULTIPLE))
        inputs, targets, resets = np.zeros(shape, np.int64), np.full(shape, IGNORE), np.zeros(shape, np.bool_)
        for row, found in enumerate(documents):
            column = 0
            for begins, ids in found:
                here = np.s_[row, column : column + len(ids) - 1]
                inputs[here], targets[here], resets[row, column] = ids[:-1], ids[1:], begins
                column += len(ids) - 1
        return Batch(
            inputs=torch.from_numpy(inputs),
            targets=torch.from_numpy(targets),
            resets=torch.from_numpy(resets),
            continues=windows.continues,
            bytes=windows.bytes,
        )

    def _documents(self, window: Batch) -> list[tuple[bool, list[int]]]:
        """Of each document in a window of one row that has a target: whether it begins here, and its ids."""
        inputs, targets, resets = window.inputs[0].numpy(), window.targets[0].numpy(), window.resets[0].numpy()
        starts = [0, *(1 + np.flatnonzero(resets[1:]))]
        found = []
        for start, stop in zip(starts, [*starts[1:], len(inputs)], strict=True):
            scored = targets[start:stop]
            rest = scored[scored != IGNORE].astype(np.uint8).tobytes()
            if rest:
                found.append((bool(resets[start]), [self._single[inputs[start]], *self._subwords.encode(rest)]))
        return found
