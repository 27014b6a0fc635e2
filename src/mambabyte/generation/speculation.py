"""Speculative decoding: how far to guess, what became of the guesses, and when two bytes are too close to call.

The verdict on a guess is simply the byte that the row chooses: noise belongs to the position, so the row would have
chosen the same byte without a drafter. docs/speculation.md argues why that is exact.
"""

import bisect
import dataclasses

import numpy as np

from mambabyte.generation.engine import Logits
from mambabyte.generation.sampling import Scores

LONGEST = 32  # bytes guessed at once
VERIFYING = 0.1  # time of verifying one more byte, as a fraction of a pass, until it has been measured
MEMORY = 0.1  # weight of the latest verdict, or time, in what is remembered
PROBE = 16  # passes between two guesses of one byte while guessing does not pay
# How often a guessed byte is right that led by so much, until it has been seen.
LEADS = (0.1, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0)
RIGHT = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


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
    """How far to guess: as far as a further byte is likely enough to be right to be worth its time.

    `cost` is the time of guessing one byte, as a fraction of a pass of one byte; `cost` and `verifying` begin at what
    the drafter says and at `VERIFYING`, and are measured from then on, as is all else.
    """

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.acceptance = 0.7
        self.rate = 1.0  # bytes in the time of a pass of one byte
        self.right = list(RIGHT)
        self._reading = _Line()
        self._spent = 0.0  # seconds of guessing that gave nothing
        self._idle = 0  # passes without a guess

    @property
    def verifying(self) -> float:
        """Time of verifying one more byte, as a fraction of a pass of one byte."""
        return self._reading.slope / self._reading.start

    def length(self) -> int:
        """The most bytes to guess next; 0 where guessing does not pay, but for a probe now and then.

        It maximises the bytes expected for the time by the acceptance and the costs lately.
        """
        expected, chance, best = 1.0, 1.0, 0
        each, highest = self.cost + self.verifying, 1.0
        for length in range(1, LONGEST + 1):
            chance *= self.acceptance
            expected += chance  # the byte after the last right guess counts too
            if expected / (1 + length * each) <= highest:
                break
            best, highest = length, expected / (1 + length * each)
        self._idle = 0 if best else (self._idle + 1) % PROBE
        return best if best or self._idle else 1

    def begin(self) -> "Confidence":
        """For one guess."""
        return Confidence(self.right, self.rate * (self.cost + self.verifying))

    def learn(self, confidence: "Confidence", guessed: int, accepted: int) -> None:
        """`accepted` of `guessed` bytes were right; the first wrong one, if any, was judged too, the rest were not."""
        for index in range(accepted + (accepted < guessed)):
            verdict = float(index < accepted)
            self.acceptance += MEMORY * (verdict - self.acceptance)
            if index < len(confidence.leads):
                lead = confidence.leads[index]
                self.right[lead] += MEMORY * (verdict - self.right[lead])

    def time(self, guessed: float, taken: float, guessing: float, verifying: float) -> None:
        """Guessing so many bytes and verifying them took so many seconds, and gave `taken` bytes."""
        self._reading.learn(guessed, verifying)
        alone = self._reading.start
        self.rate += MEMORY * (taken / (guessing + verifying) * alone - self.rate)
        self._spent += guessing
        if guessed:
            self.cost += MEMORY * (self._spent / guessed / alone - self.cost)
            self._spent = 0.0


class Confidence:
    """What a drafter asks after each byte that it guesses: whether to go on.

    It does while the chance that all of the guess is right is at least `worth`. `leads` are the kinds of lead that its
    bytes had, from a close call (0) on.
    """

    def __init__(self, right: list[float], worth: float) -> None:
        self._right, self._worth = right, worth
        self._chance = 1.0
        self.leads: list[int] = []

    def __call__(self, lead: float) -> bool:
        """Whether to go on after a byte that won by `lead`."""
        kind = bisect.bisect(LEADS, lead)
        self.leads.append(kind)
        self._chance *= self._right[kind]
        return self._chance >= self._worth


class _Line:
    """Seconds of a read against the bytes guessed in it: start + slope * bytes, fitted to the latest reads.

    While those were all alike, and say little about the slope, it is `VERIFYING` of the start.
    """

    def __init__(self) -> None:
        self.start, self.slope = 1.0, VERIFYING
        self._bytes = self._seconds = self._spread = self._common = 0.0

    def learn(self, guessed: float, seconds: float) -> None:
        if self._seconds == 0:
            self._bytes, self._seconds = guessed, seconds
        else:
            seconds = min(seconds, 4 * (self.start + self.slope * guessed))  # when the machine pauses, reads do not
        more, longer = guessed - self._bytes, seconds - self._seconds
        self._bytes += MEMORY * more
        self._seconds += MEMORY * longer
        self._spread += MEMORY * (more * more - self._spread)
        self._common += MEMORY * (more * longer - self._common)
        usual = VERIFYING * self._seconds / (1 + VERIFYING * self._bytes)
        most = self._seconds / (1 + self._bytes)  # a byte more is no dearer than a pass
        self.slope = min(max((self._common + usual) / (self._spread + 1), 0.0), most)
        self.start = self._seconds - self.slope * self._bytes


def agreement(a: bytes, b: bytes) -> int:
    """How many bytes of two strings agree before the first that differ, or one of them ends."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def too_close(scores: Scores, logits: Logits, temperature: float, tolerance: float) -> bool:
    """Whether logits off by `tolerance` of the largest could make another byte win."""
    if tolerance == 0:
        return False
    second, first = np.partition(scores, -2)[-2:]
    return bool((first - second) * (temperature or 1.0) <= 2 * tolerance * np.abs(logits).max())
