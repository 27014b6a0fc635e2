"""Which slot of an engine's memory holds the state of which row, and those after each byte of its last long read."""

from typing import NamedTuple

from mambabyte.generation.engine import Ids


class Column(NamedTuple):
    """One id to be read: the slot of the state before it, and the slot that takes the state after it."""

    id: int
    before: int
    after: int


class Slots:
    """Rows that come and go over a growing number of slots; the memory itself is the engine's.

    A row that reads one id updates its slot in place. Of several, every state is kept until the row's next read, so
    that a rewind is a change of slot.
    """

    def __init__(self, count: int, reserved: int = 0) -> None:
        self.count = count
        self._free = list(range(count - 1, reserved - 1, -1))
        self._current: dict[int, int] = {}
        self._trail: dict[int, list[int]] = {}
        self._next_row = 0

    def join(self) -> int:
        """A new row with a slot of its own, whose content is the caller's to fill."""
        row, self._next_row = self._next_row, self._next_row + 1
        self._current[row], self._trail[row] = self._take(), []
        return row

    def of(self, row: int) -> int:
        """The slot of the row's present state."""
        return self._current[row]

    def read(self, row: int, ids: Ids) -> list[Column]:
        """The columns by which the row reads `ids`, in order."""
        self._forget(row)
        if len(ids) == 1:
            return [Column(ids[0], self._current[row], self._current[row])]
        trail = [self._current[row], *(self._take() for _ in ids)]
        self._trail[row], self._current[row] = trail, trail[-1]
        return [Column(*column) for column in zip(ids, trail[:-1], trail[1:], strict=True)]

    def rewind(self, row: int, count: int) -> None:
        """The row stands after the first `count` ids of its last read."""
        self._current[row] = self._trail[row][count]

    def leave(self, row: int) -> None:
        """Free the row's slots."""
        self._forget(row)
        self._free.append(self._current.pop(row))
        del self._trail[row]

    def _forget(self, row: int) -> None:
        self._free += [slot for slot in self._trail[row] if slot != self._current[row]]
        self._trail[row] = []

    def _take(self) -> int:
        if not self._free:
            self._free = list(range(2 * self.count - 1, self.count - 1, -1))
            self.count *= 2
        return self._free.pop()
