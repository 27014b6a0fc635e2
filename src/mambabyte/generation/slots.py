"""Which slot of an engine's memory holds the state of which row, and those after each byte of its last long read."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from mambabyte.generation.engine import Ids, Logits


class Columns(NamedTuple):
    """Ids to be read, the slots of the states before them and the slots that take the states after them."""

    ids: list[int]
    before: list[int]
    after: list[int]


class Slots:
    """Rows that come and go over a growing number of slots; the memory itself is the engine's.

    A row that reads one id updates its slot in place. Of several, every state is kept until the row's next read, so
    that a rewind is a change of slot. A fork shares its row's slot, which then nobody writes any more: whoever of them
    reads on does so from there into a slot of its own. Nothing is ever copied.
    """

    def __init__(self, count: int, reserved: int = 0) -> None:
        self.count = count
        self._free = list(range(count - 1, reserved - 1, -1))
        self._shared: dict[int, int] = {}  # slots that several rows stand in or may go back to: how many beyond one
        self._current: dict[int, int] = {}
        self._trail: dict[int, list[int]] = {}  # of the rows that have one
        self._next_row = 0

    def join(self) -> int:
        """A new row with a slot of its own, whose content is the caller's to fill."""
        (slot,) = self._take(1)
        return self._new_row(slot)

    def fork(self, row: int) -> int:
        """A new row in the state of `row`."""
        slot = self._current[row]
        self._hold(slot)
        return self._new_row(slot)

    def of(self, row: int) -> int:
        """The slot of the row's present state."""
        return self._current[row]

    def read(self, rows: Sequence[int], data: Sequence[Ids], vocabulary: int) -> Columns:
        """The columns of each of these different rows, one row after the other; each has at least one id to read.

        Rows that all update their slots in place, as most do in most reads, cost no more than their lists do. Raises
        ValueError, and moves no row, where a row has nothing to read or an id is not below `vocabulary`.
        """
        assert len(rows) == len(data), f"{len(rows)} rows cannot read {len(data)} pieces"
        ids = list(chain.from_iterable(data))
        if 0 in map(len, data):
            raise ValueError("a row has no id to read; leave it out of the call")
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise ValueError(f"ids from {min(ids)} to {max(ids)} for a model that has those from 0 to {vocabulary - 1}")
        here = list(map(self._current.__getitem__, rows))
        if len(ids) == len(rows) and self._trail.keys().isdisjoint(rows) and self._shared.keys().isdisjoint(here):
            return Columns(ids, here, here)
        walks = list(map(self._walk, rows, map(len, data)))
        before, after = ([slot for walk in walks for slot in walk[part]] for part in (slice(-1), slice(1, None)))
        return Columns(ids, before, after)

    def rewind(self, row: int, count: int) -> None:
        """The row stands after the first `count` ids of its last read, fewer than were there."""
        slot = self._trail[row][count]
        self._hold(slot)
        self._let_go([self._current[row]])
        self._current[row] = slot

    def leave(self, row: int) -> None:
        """Free the row's slots."""
        self._let_go([*self._trail.pop(row, ()), self._current.pop(row)])

    def _new_row(self, slot: int) -> int:
        row, self._next_row = self._next_row, self._next_row + 1
        self._current[row] = slot
        return row

    def _walk(self, row: int, count: int) -> list[int]:
        """The slots that the row stands in before, between and after the next `count` ids."""
        self._let_go(self._trail.pop(row, ()))
        here = self._current[row]
        if count == 1 and here not in self._shared:
            return [here, here]
        walk = [here, *self._take(count)]
        # a shared slot is let go at the next read: until then another row must not write where this one reads
        self._trail[row], self._current[row] = walk[:-1], walk[-1]
        return walk

    def _hold(self, slot: int) -> None:
        self._shared[slot] = self._shared.get(slot, 0) + 1

    def _let_go(self, slots: Iterable[int]) -> None:
        for slot in slots:
            others = self._shared.pop(slot, 0)
            if not others:
                self._free.append(slot)
            elif others > 1:
                self._shared[slot] = others - 1

    def _take(self, count: int) -> list[int]:
        while len(self._free) < count:
            self._free = [*range(2 * self.count - 1, self.count - 1, -1), *self._free]
            self.count *= 2
        taken = self._free[-count:]
        del self._free[-count:]
        return taken


def by_row(logits: Logits, data: Sequence[Ids]) -> list[Logits]:
    """The logits after each column as `Engine.read` gives them: for each row those after its ids."""
    if len(logits) == len(data):
        return list(logits[:, None])
    ends = accumulate(map(len, data))
    return [logits[end - len(ids) : end] for ids, end in zip(data, ends, strict=True)]
