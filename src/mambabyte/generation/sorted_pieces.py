"""A subword vocabulary in lexicographic order, where pieces with a common beginning are neighbours."""

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray


class SortedPieces:
    """Pieces in lexicographic order, so that those with a common beginning are neighbours."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.ids = np.array(sorted(range(len(pieces)), key=pieces.__getitem__))
        self.pieces = [pieces[i] for i in self.ids]
        width = max(map(len, pieces)) + 1
        self._bytes = np.full((len(pieces), width), 256)  # 256: the piece has ended
        for row, piece in zip(self._bytes, self.pieces, strict=True):
            row[: len(piece)] = list(piece)

    def beginning_with(self, data: bytes) -> slice:
        """The pieces that begin with `data`; the piece that is `data`, if any, is the first."""
        low = bisect_left(self.pieces, data)
        return slice(low, bisect_right(self.pieces, data, lo=low, key=lambda piece: piece[: len(data)]))

    def next_bytes(self, where: slice, depth: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(257,) the sum of `weights` over the pieces of `where` by their byte at `depth`; last, those that ended.

        `where` is not empty, and `depth` is the length of a beginning that they share.
        """
        return np.bincount(self._bytes[where, depth], weights[where], minlength=257).astype(np.float64)
