"""Who stands in which slot: memory is moved as the columns say, and every row has what it read."""

import copy
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabyte.generation.slots import Columns, Slots

ACTIONS = st.lists(st.tuples(st.sampled_from("jfrrrbl"), st.integers(0, 5), st.integers(1, 5)), max_size=40)


class Column(NamedTuple):
    id: int
    before: int
    after: int


def each_of(columns: Columns) -> list[Column]:
    return [Column(*column) for column in zip(*columns, strict=True)]


class Rows:
    """Slots that hold texts, beside the texts that the rows should have."""

    def __init__(self) -> None:
        self.slots = Slots(2)
        self.memory: dict[int, str] = {}
        self.texts: dict[int, str] = {}
        self.lately: dict[int, tuple[str, int]] = {}  # the text before a row's last read of several, and their number

    def join(self) -> None:
        row = self.slots.join()
        self.texts[row] = self.memory[self.slots.of(row)] = ""

    def fork(self, row: int) -> None:
        self.texts[self.slots.fork(row)] = self.texts[row]

    def leave(self, row: int) -> None:
        self.slots.leave(row)
        del self.texts[row]
        self.lately.pop(row, None)

    def rewind(self, row: int, count: int) -> None:
        if row in self.lately:
            before, read = self.lately.pop(row)
            self.slots.rewind(row, count % read)
            self.texts[row] = self.texts[row][: len(before) + count % read]

    def read(self, rows: list[int], count: int) -> None:
        """One call: its columns happen in any order but that of a row's own, so none writes what another row reads."""
        data = [range(97, 97 + (count if row % 2 else 1)) for row in rows]
        alone = copy.deepcopy(self.slots)
        one_by_one = [c for row, ids in zip(rows, data, strict=True) for c in each_of(alone.read([row], [ids], 128))]
        found = each_of(self.slots.read(rows, data, 128))
        assert found == one_by_one
        assert len({column.after for column in found}) == len(found)
        columns = {row: [found.pop(0) for _ in ids] for row, ids in zip(rows, data, strict=True)}
        for row, each in columns.items():
            theirs = {column.after for other in columns if other != row for column in columns[other]}
            assert not theirs & {column.before for column in each}
            self.lately.pop(row, None)
            if len(each) > 1:
                self.lately[row] = (self.texts[row], len(each))
            for column in each:
                self.memory[column.after] = self.memory[column.before] + chr(column.id)
                self.texts[row] += chr(column.id)


@given(ACTIONS)
def test_rows_have_what_they_read(actions: list[tuple[str, int, int]]) -> None:
    all_rows = Rows()
    for action, which, count in actions:
        rows = sorted(all_rows.texts)
        if action == "j" or not rows:
            all_rows.join()
            continue
        row = rows[which % len(rows)]
        if action == "r":
            all_rows.read(rows[: which + 1], count)
        elif action == "b":
            all_rows.rewind(row, count)
        else:
            {"f": all_rows.fork, "l": all_rows.leave}[action](row)
        for row, text in all_rows.texts.items():
            assert all_rows.memory[all_rows.slots.of(row)] == text
    for row in sorted(all_rows.texts):
        all_rows.leave(row)
    assert len(all_rows.slots._free) == all_rows.slots.count, "a slot is held by nobody"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([b"ab", b""], "a row has no id to read"),
        ([b"a", [128]], "ids from 97 to 128 .* from 0 to 127"),
        ([b"a", [-1]], "ids from -1 to 97"),
    ],
)
def test_what_cannot_be_read_moves_no_row(data: list[list[int]], sentence: str) -> None:
    slots = Slots(4)
    rows = [slots.join(), slots.join()]
    before = copy.deepcopy(vars(slots))
    with pytest.raises(ValueError, match=sentence):
        slots.read(rows, data, 128)
    assert vars(slots) == before
