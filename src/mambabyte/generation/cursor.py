"""Where a row is: everything but the logits that decides its next byte, as a value.

A drafter is handed the row's cursor and walks ahead with it: it draws with the noise, the settings and the constraint
that will judge its guess, so that it guesses right wherever its distribution makes the same byte win.
"""

import dataclasses
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mambabyte.generation.sampling import Mask, Sampler, Scores


class Rule(Protocol):
    """A constraint: a language of byte strings, as an automaton whose states are integers."""

    start: int

    def allowed(self, state: int, left: int) -> Mask:
        """(256,) bytes after which a word of the language can be completed within `left` bytes, that byte included."""
        ...

    def after(self, state: int, byte: int) -> int:
        """The state after an allowed byte."""
        ...

    def shortest(self, state: int) -> int:
        """The fewest bytes that complete a word from here; 0 where the bytes so far are one."""
        ...

    def ended(self, state: int) -> bool:
        """Whether the bytes so far are a word that no byte can extend."""
        ...


@dataclasses.dataclass(frozen=True)
class Cursor:
    """A place in the output of one row: `position` bytes are chosen, `left` may still come.

    recent: the last bytes read and chosen, as many as the repetition penalty looks back.
    rule, state: the constraint and where its automaton is; None is no constraint.
    """

    sampler: Sampler
    left: int
    position: int = 0
    recent: bytes = b""
    rule: Rule | None = None
    state: int = 0

    def scores(self, logits: NDArray[np.float32]) -> Scores:
        """(256,) of which the largest wins, from the logits of the next byte."""
        allowed = None if self.rule is None else self.rule.allowed(self.state, self.left)
        return self.sampler.scores(logits, self.position, self.recent, allowed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next byte, from its logits."""
        return int(self.scores(logits).argmax())

    def after(self, byte: int) -> Self:
        """The place after `byte`."""
        window = self.sampler.window
        recent = (self.recent + bytes((byte,)))[-window:] if window else b""
        state = 0 if self.rule is None else self.rule.after(self.state, byte)
        return type(self)(self.sampler, self.left - 1, self.position + 1, recent, self.rule, state)

    @property
    def ended(self) -> bool:
        """Whether the constraint lets no byte follow."""
        return self.rule is not None and self.rule.ended(self.state)
