"""Languages of byte strings: expressions, and the automaton that walks one byte by byte.

An expression becomes a non-deterministic automaton (Thompson, https://doi.org/10.1145/363347.363387), and that a
deterministic one state by state, as text reaches the states. Every state knows how many bytes it needs at least to
complete a word, so that an output never runs into its limit in the middle of one.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mambabyte.generation.sampling import Mask

MOST_PARTS = 1 << 20  # that an expression is laid out in: some 5 seconds and 500 MB
NEVER = np.iinfo(np.int64).max // 2  # more bytes than any output has: no word can be completed


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One byte of a set, given as inclusive ranges."""

    ranges: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Chain:
    """One part after the other; without parts, the empty string."""

    parts: tuple["Expression", ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Any one of the parts; without parts, nothing at all."""

    parts: tuple["Expression", ...]


@dataclasses.dataclass(frozen=True)
class Times:
    """The part from `least` to `most` times."""

    part: "Expression"
    least: int
    most: int


@dataclasses.dataclass(frozen=True)
class Joined:
    """One part or more, with a separator between each two."""

    part: "Expression"
    separator: "Expression"


@dataclasses.dataclass(frozen=True)
class Members:
    """Some of the parts, in their order, with a separator between each two; of each part, whether it must be there."""

    parts: tuple[tuple["Expression", bool], ...]
    separator: "Expression"


Expression: TypeAlias = OneOf | Chain | Choice | Times | Joined | Members

EMPTY = Chain(())


def literal(data: bytes) -> Expression:
    """Exactly these bytes."""
    return sequence(*(OneOf(((byte, byte),)) for byte in data))


def words(some: Collection[bytes]) -> Expression:
    """Any of these words; what several begin with is laid out once."""
    ends: dict[int, set[bytes]] = {}
    for word in some:
        if word:
            ends.setdefault(word[0], set()).add(word[1:])
    alike: dict[frozenset[bytes], list[int]] = {}
    for first, rest in ends.items():
        alike.setdefault(frozenset(rest), []).append(first)
    parts = [sequence(OneOf(tuple((byte, byte) for byte in firsts)), words(rest)) for rest, firsts in alike.items()]
    return choice(*parts, *([EMPTY] if b"" in some else []))


def sequence(*parts: Expression) -> Expression:
    """One after the other."""
    return parts[0] if len(parts) == 1 else Chain(parts)


def choice(*parts: Expression) -> Expression:
    """Any of them."""
    return parts[0] if len(parts) == 1 else Choice(parts)


def repeat(part: Expression, least: int, most: int | None) -> Expression:
    """`part` from `least` to `most` times, or any number from `least` on if `most` is None."""
    if most is None:
        more = Joined(part, EMPTY)
        return sequence(*[part] * (least - 1), more) if least else choice(EMPTY, more)
    return Times(part, least, most)


@dataclasses.dataclass
class _Nfa:
    """States are numbers. `steps[s]` are (set of bytes, next state), `free[s]` states reached without a byte."""

    steps: list[list[tuple[Mask, int]]] = dataclasses.field(default_factory=list)
    free: list[list[int]] = dataclasses.field(default_factory=list)
    parts: int = 0

    def new(self) -> int:
        self.steps.append([])
        self.free.append([])
        return len(self.steps) - 1

    def add(self, expression: Expression, start: int) -> int:
        """Lay `expression` out from state `start`; returns the state where it has been read.

        Raises ValueError for one of too many parts, every repetition counted as often as it may come.
        """
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise ValueError(
                f"the constraint has over {MOST_PARTS:,} parts, repetitions multiplied; allow fewer of them"
            )
        match expression:
            case OneOf(ranges):
                self.steps[start].append((_mask(ranges), end := self.new()))
                return end
            case Chain(parts):
                for part in parts:
                    start = self.add(part, start)
                return start
            case Choice(parts):
                end = self.new()
                for part in parts:
                    self.free[start].append(entry := self.new())
                    self.free[self.add(part, entry)].append(end)
                return end
            case Times(part, least, most):
                end = self.new()
                for count in range(most):
                    if count >= least:
                        self.free[start].append(end)
                    start = self.add(part, start)
                self.free[start].append(end)
                return end
            case Joined(part, separator):
                self.free[start].append(entry := self.new())
                end = self.add(part, entry)
                self.free[self.add(separator, end)].append(entry)
                self.free[end].append(after := self.new())
                return after
            case Members(parts, separator):
                return self._add_members(parts, separator, start)

    def _add_members(self, parts: Sequence[tuple[Expression, bool]], separator: Expression, start: int) -> int:
        """Two ways lead through the parts, each of which lies there once: nothing has come yet, or something has."""
        nothing: int | None = start
        something: int | None = None
        for part, required in parts:
            entry, after = self.new(), self.new()
            if nothing is not None:
                self.free[nothing].append(entry)
            if something is not None:
                self.free[self.add(separator, something)].append(entry)
            self.free[self.add(part, entry)].append(after)
            if required:
                nothing = None
            elif something is not None:
                self.free[something].append(after)
            something = after
        end = self.new()
        for way in (nothing, something):
            if way is not None:
                self.free[way].append(end)
        return end

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """Every state reached from `states` without a byte."""
        found, waiting = set(states), list(states)
        while waiting:
            fresh = [s for s in self.free[waiting.pop()] if s not in found]
            found.update(fresh)
            waiting.extend(fresh)
        return frozenset(found)

    def distances(self, final: int) -> list[int]:
        """The fewest bytes from each state to `final`."""
        backwards: list[list[tuple[int, int]]] = [[] for _ in self.steps]
        for state, (steps, free) in enumerate(zip(self.steps, self.free, strict=True)):
            for _, target in steps:
                backwards[target].append((state, 1))
            for target in free:
                backwards[target].append((state, 0))
        distance = [NEVER] * len(self.steps)
        distance[final], waiting = 0, deque([final])
        while waiting:
            state = waiting.popleft()
            for before, cost in backwards[state]:
                if distance[state] + cost < distance[before]:
                    distance[before] = distance[state] + cost
                    (waiting.append if cost else waiting.appendleft)(before)
        return distance


@functools.lru_cache(maxsize=4096)
def _mask(ranges: tuple[tuple[int, int], ...]) -> Mask:
    mask = np.zeros(256, bool)
    for low, high in ranges:
        mask[low : high + 1] = True
    return mask


class Automaton:
    """The words of an expression, one byte at a time; a `Rule`.

    Raises ValueError if the expression has no word at all, or too many parts.
    """

    def __init__(self, expression: Expression) -> None:
        self._nfa = _Nfa()
        begin = self._nfa.new()
        self._distance = self._nfa.distances(self._nfa.add(expression, begin))
        self._sets: list[frozenset[int]] = []
        self._numbers: dict[frozenset[int], int] = {}
        self._shortest: list[int] = []
        self._next: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self.start = self._number(self._nfa.closure([begin]))
        if self.shortest(self.start) >= NEVER:
            raise ValueError("the constraint lets no text through at all")

    def allowed(self, state: int, left: int) -> Mask:
        """See `Rule.allowed`."""
        return self._transitions(state)[1] < left

    def after(self, state: int, byte: int) -> int:
        """See `Rule.after`."""
        target = int(self._transitions(state)[0][byte])
        assert target >= 0, f"byte {byte} is not allowed here"
        return target

    def shortest(self, state: int) -> int:
        """See `Rule.shortest`."""
        return self._shortest[state]

    def ended(self, state: int) -> bool:
        """See `Rule.ended`."""
        return self.shortest(state) == 0 and bool((self._transitions(state)[1] >= NEVER).all())

    def matches(self, data: Sequence[int]) -> bool:
        """Whether `data` is a word."""
        state = self.start
        for byte in data:
            if self._transitions(state)[1][byte] >= NEVER:
                return False
            state = self.after(state, byte)
        return self.shortest(state) == 0

    def _number(self, states: frozenset[int]) -> int:
        if states not in self._numbers:
            self._numbers[states] = len(self._sets)
            self._sets.append(states)
            self._shortest.append(min((self._distance[s] for s in states), default=NEVER))
        return self._numbers[states]

    def _transitions(self, state: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each byte the next state (-1: none) and the fewest bytes that it then needs."""
        if state not in self._next:
            steps = [step for s in sorted(self._sets[state]) for step in self._nfa.steps[s]]
            targets, needs = np.full(256, -1), np.full(256, NEVER)
            if steps:
                kinds, kind_of_byte = np.unique(np.array([mask for mask, _ in steps]), axis=1, return_inverse=True)
                for kind, chosen in enumerate(kinds.T):
                    if not chosen.any():
                        continue
                    reached = [target for (_, target), yes in zip(steps, chosen, strict=True) if yes]
                    number = self._number(self._nfa.closure(reached))
                    here = kind_of_byte.reshape(-1) == kind
                    targets[here], needs[here] = number, self._shortest[number]
            self._next[state] = targets, needs
        return self._next[state]
