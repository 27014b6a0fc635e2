"""A subword vocabulary in lexicographic order, where pieces with a common beginning are neighbours."""

import dataclasses
from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Beginning:
    """The pieces that begin with some bytes: `where` they lie, `whole` if the first of them is those bytes.

    `nexts` are the bytes that may follow in a piece, ascending, and `starts` where the pieces with each begin, counted
    from the first of all.
    """

    where: slice
    whole: bool
    nexts: NDArray[np.intp]
    starts: NDArray[np.intp]

    def split(self, weights: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        """From the weights of all pieces, the beginning's own (0 if it is no piece) and those of each next byte."""
        mine = weights[self.where]
        nexts = np.add.reduceat(mine, self.starts) if len(self.starts) else mine[:0]
        return float(mine[0]) if self.whole else 0.0, nexts


class SortedPieces:
    """The beginnings of a vocabulary's pieces; `ids` are those of the pieces in lexicographic order."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.ids = np.array(sorted(range(len(pieces)), key=pieces.__getitem__))
        self.pieces = [pieces[i] for i in self.ids]
        self.longest = max(map(len, pieces))
        self._found: dict[bytes, Beginning] = {}

    def beginning_with(self, data: bytes) -> Beginning:
        """The pieces that begin with `data`."""
        found = self._found.get(data)
        return self._find(data) if found is None else found

    def _find(self, data: bytes) -> Beginning:
        low = bisect_left(self.pieces, data)
        high = bisect_right(self.pieces, data, lo=low, key=lambda piece: piece[: len(data)])
        whole = low < high and self.pieces[low] == data
        following = [self.pieces[i][len(data)] for i in range(low + whole, high)]
        nexts, starts = np.unique(np.array(following, dtype=np.intp), return_index=True)
        beginning = Beginning(slice(low, high), whole, nexts, starts + whole)
        if low < high:  # as many as the pieces have beginnings; others could be without end
            self._found[data] = beginning
        return beginning
