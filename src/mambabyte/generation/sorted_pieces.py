"""A subword vocabulary in lexicographic order, where pieces with a common beginning are neighbours."""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Beginning(NamedTuple):
    """The pieces that begin with some bytes lie at `where`; the one that is those bytes, if any, at `whole`, and the
    longer ones at `longer`.

    `nexts` are the bytes that may follow in a piece, ascending, and `starts` where the pieces with each begin, counted
    from the first of the longer ones. `after` are the beginnings that are longer by each of these bytes.
    """

    where: slice
    whole: int | None
    longer: slice
    nexts: NDArray[np.intp]
    starts: NDArray[np.intp]
    after: dict[int, "Beginning"]

    def ended(self, weights: NDArray[np.float32]) -> float:
        """The weight of the bytes as a piece, from those of all pieces."""
        return 0.0 if self.whole is None else weights.item(self.whole)

    def by_next(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weight of each of `nexts`, from those of all pieces."""
        return np.add.reduceat(weights[self.longer], self.starts)


class SortedPieces:
    """The pieces of a vocabulary in lexicographic order, their `ids` in that order, and the pieces with each of their
    `beginnings`."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.ids = np.array(sorted(range(len(pieces)), key=pieces.__getitem__))
        self.pieces = [pieces[i] for i in self.ids]
        # All of them now, in some 40 ms for 4,096 pieces: found when they are needed, each would cost a guess as much
        # as a step of its model.
        places: dict[bytes, list[int]] = {}
        for place, piece in enumerate(self.pieces):
            for length in range(len(piece) + 1):
                places.setdefault(piece[:length], []).append(place)
        self.beginnings: dict[bytes, Beginning] = {}
        for data in sorted(places, key=len, reverse=True):
            self.beginnings[data] = self._beginning(data, places[data])

    def _beginning(self, data: bytes, places: list[int]) -> Beginning:
        """`places` are those of its pieces, neighbours all. The longer beginnings must be there already."""
        first, end, length = places[0], places[-1] + 1, len(data)
        whole = self.pieces[first] == data
        groups = itertools.groupby(places[whole:], key=lambda place: self.pieces[place][length])
        starts = {byte: next(some) - first - whole for byte, some in groups}
        return Beginning(
            slice(first, end),
            first if whole else None,
            slice(first + whole, end),
            np.array(list(starts), dtype=np.intp),
            np.array(list(starts.values()), dtype=np.intp),
            {byte: self.beginnings[data + bytes((byte,))] for byte in starts},
        )
