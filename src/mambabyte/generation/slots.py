"""Which slot of an engine's memory holds the state of which row, and those after each byte of its last long read."""

from collections import Counter
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
    that a rewind is a change of slot. A fork shares its row's slot, which then nobody writes any more: whoever of them
    reads on does so from there into a slot of its own. Nothing is ever copied.
    """

    def __init__(self, count: int, reserved: int = 0) -> None:
        self.count = count
        self._free = list(range(count - 1, reserved - 1, -1))
        self._holders: Counter[int] = Counter()  # of a slot: rows that stand there or may go back to it
        self._current: dict[int, int] = {}
        self._trail: dict[int, list[int]] = {}
        self._next_row = 0

    def join(self) -> int:
        """A new row with a slot of its own, whose content is the caller's to fill."""
        return self._new_row(self._take())

    def fork(self, row: int) -> int:
        """A new row in the state of `row`."""
        return self._new_row(self._current[row])

    def of(self, row: int) -> int:
        """The slot of the row's present state."""
        return self._current[row]

    def read(self, row: int, ids: Ids) -> list[Column]:
        """The columns by which the row reads `ids`, in order."""
        self._let_go(self._trail[row])
        self._trail[row] = []
        here = self._current[row]
        if len(ids) == 1 and self._holders[here] == 1:
            return [Column(ids[0], here, here)]
        trail = [here, *(self._take() for _ in ids)]
        self._hold(trail[1:])
        # a shared slot is let go at the next read: until then another row must not write where this one reads
        self._trail[row], self._current[row] = trail[:-1], trail[-1]
        return [Column(*column) for column in zip(ids, trail[:-1], trail[1:], strict=True)]

    def rewind(self, row: int, count: int) -> None:
        """The row stands after the first `count` ids of its last read, fewer than were there."""
        slot = self._trail[row][count]
        self._hold([slot])
        self._let_go([self._current[row]])
        self._current[row] = slot

    def leave(self, row: int) -> None:
        """Free the row's slots."""
        self._let_go([*self._trail.pop(row), self._current.pop(row)])

    def _new_row(self, slot: int) -> int:
        row, self._next_row = self._next_row, self._next_row + 1
        self._current[row], self._trail[row] = slot, []
        self._hold([slot])
        return row

    def _hold(self, slots: list[int]) -> None:
        for slot in slots:
            self._holders[slot] += 1

    def _let_go(self, slots: list[int]) -> None:
        for slot in slots:
            self._holders[slot] -= 1
            if not self._holders[slot]:
                self._free.append(slot)

    def _take(self) -> int:
        if not self._free:
            self._free = list(range(2 * self.count - 1, self.count - 1, -1))
            self.count *= 2
        return self._free.pop()
