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
MEMORY = 0.1  # weight of the latest verdict, or time, in what is remembered
PROBE = 16  # passes between two guesses of one byte while guessing does not pay


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
    """How many bytes to guess: the length that gives most bytes for the time, by the acceptance and the cost lately.

    `cost` is the time of guessing one byte as a fraction of a pass; the drafter's own figure is where it begins.
    """

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.acceptance = 0.7
        self._idle = 0  # passes without a guess

    def learn(self, guessed: int, accepted: int) -> None:
        """`accepted` of `guessed` bytes were right; the first wrong one, if any, was judged too, the rest were not."""
        for verdict in [1.0] * accepted + [0.0] * (accepted < guessed):
            self.acceptance += MEMORY * (verdict - self.acceptance)

    def time(self, guessed: float, guessing: float, verifying: float) -> None:
        """Guessing so many bytes, and verifying them, took so many seconds."""
        if guessed:
            alone = verifying / (1 + VERIFYING * guessed)
            self.cost += MEMORY * (guessing / guessed / alone - self.cost)

    def length(self) -> int:
        """Bytes to guess next; 0 where guessing does not pay, but for a probe now and then."""
        lengths = np.arange(LONGEST + 1)
        expected = np.cumsum(self.acceptance**lengths)  # the byte after the last right guess too
        best = int((expected / (1 + lengths * (self.cost + VERIFYING))).argmax())
        self._idle = 0 if best else (self._idle + 1) % PROBE
        return best if best or self._idle else 1


def too_close(scores: Scores, logits: Logits, temperature: float, tolerance: float) -> bool:
    """Whether logits off by `tolerance` of the largest could make another byte win."""
    if tolerance == 0:
        return False
    second, first = np.partition(scores, -2)[-2:]
    return bool((first - second) * (temperature or 1.0) <= 2 * tolerance * np.abs(logits).max())
