"""Where a row is: everything but the logits that decides its next byte, as a value.

A drafter is handed the row's cursor and walks ahead with it: it draws with the noise, the settings and the constraint
that will judge its guess, so that it guesses right wherever its distribution makes the same byte win.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mambabyte.generation.sampling import Mask, Sampler, Scores, lead
from mambabyte.models.byte_lm import BYTES

UNLIKELY = -1e4  # log weight of a byte that a drafter does not reckon with


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


class Cursor(NamedTuple):
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

    def draw(self, weights: NDArray[np.float32]) -> tuple[int | None, float]:
        """The byte that wins if the next one has such weights (256,), up to a common factor, and by how much it leads.

        None where all weights are 0, or where a constraint makes a byte of weight 0 win.
        """
        if self.free and not self.sampler.settings.truncates:
            return self.sampler.race(weights, self.position)
        if not weights.any():
            return None, 0.0
        logits = np.full(BYTES, UNLIKELY, np.float32)
        best, by = lead(self.scores(np.log(weights, out=logits, where=weights > 0)))
        return (best, by) if weights[best] else (None, 0.0)

    def after(self, byte: int) -> "Cursor":
        """The place after `byte`."""
        sampler, left, position, recent, rule, state = self
        if rule is not None:
            state = rule.after(state, byte)
        if sampler.window:
            recent = (recent + bytes((byte,)))[-sampler.window :]
        return Cursor(sampler, left - 1, position + 1, recent, rule, state)

    def noise(self, count: int) -> Scores:
        """(count, 256) the noise of the next bytes."""
        return self.sampler.noise.rows(self.position, count)

    def skip(self, count: int) -> "Cursor":
        """The place after `count` bytes, whichever they are; for a free cursor."""
        return Cursor(self.sampler, self.left - count, self.position + count)

    @property
    def free(self) -> bool:
        """Whether the next byte depends on its logits, the settings and the noise alone."""
        return self.rule is None and not self.sampler.window

    @property
    def ended(self) -> bool:
        """Whether the constraint lets no byte follow."""
        return self.rule is not None and self.rule.ended(self.state)
