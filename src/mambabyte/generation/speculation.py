"""Speculative decoding: how far to guess, what became of the guesses, and when two bytes are too close to call.

The verdict on a guess is simply the byte that the row chooses: noise belongs to the position, so the row would have
chosen the same byte without a drafter. docs/speculation.md argues why that is exact.
"""

import dataclasses

import numpy as np

from mambabyte.generation.engine import Logits
from mambabyte.generation.sampling import Scores

LONGEST = 32  # bytes guessed at once
VERIFYING = 0.1  # time of verifying one more byte, as a fraction of a pass, which is bound by reading the weights
MEMORY = 0.1  # weight of the latest verdict in the running acceptance


@dataclasses.dataclass
class Statistics:
    """What decoding did: counts over all rows, times in seconds.

    passes: reads of the verifier, one for each row. bytes: chosen. drafted, accepted: guessed, and guessed right.
    replays: read again because a choice was too close to call.
    """

    passes: int = 0
    bytes: int = 0
    drafted: int = 0
    accepted: int = 0
    replays: int = 0
    seconds: float = 0.0
    drafter_seconds: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """The counts, and the ratios that say how well it went."""
        return dataclasses.asdict(self) | {
            "acceptance": self.accepted / max(self.drafted, 1),
            "bytes_per_pass": self.bytes / max(self.passes, 1),
            "drafter_share": self.drafter_seconds / max(self.seconds, 1e-9),
        }


class Pace:
    """How many bytes to guess: the length that gives most bytes for the time, at the acceptance seen lately."""

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.acceptance = 0.7

    def learn(self, guessed: int, accepted: int) -> None:
        """`accepted` of `guessed` bytes were right; the first wrong one, if any, was judged too, the rest were not."""
        for verdict in [1.0] * accepted + [0.0] * (accepted < guessed):
            self.acceptance += MEMORY * (verdict - self.acceptance)

    def length(self) -> int:
        """Bytes to guess next, at least 1."""
        lengths = np.arange(1, LONGEST + 1)
        expected = np.cumsum(self.acceptance ** np.arange(LONGEST + 1))[1:]  # the byte after the last right guess too
        return int(lengths[(expected / (1 + lengths * (self.cost + VERIFYING))).argmax()])


def too_close(scores: Scores, logits: Logits, temperature: float, tolerance: float) -> bool:
    """Whether logits off by `tolerance` of the largest could make another byte win."""
    if tolerance == 0:
        return False
    second, first = np.partition(scores, -2)[-2:]
    return bool((first - second) * (temperature or 1.0) <= 2 * tolerance * np.abs(logits).max())
