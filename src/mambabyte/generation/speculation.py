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
# How often a guessed byte is right that led by so much, until it has been seen.
LEADS = (0.1, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0)
RIGHT = (0.3, 0.4, 0.5, 0.6, 0.65, 0.75, 0.87, 0.96)
FORGETTING = 0.01  # what of that comes back in a pass, so that what is not guessed any more has another chance
LOSS = 0.05  # passes lost in a pass, on average, from which on the drafter is left alone for a while
USUAL = 0.25  # the variance of counts that says as much about a slope as what it usually is
PAUSE = 10  # times as long as expected: the machine pauses, and not we
TRIAL, PAUSES = 4, (16, 256)  # passes with a drafter that has not paid, and between two such trials: fewest and most


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
    """When to guess and how far: as far as a further byte is likely enough to be right to be worth its time.

    Times are counted in passes of one byte. `cost` is the time of a read of the drafter, or of a guessed byte if it
    asks no `Confidence`, until that has been measured, as all else is from the first pass on.
    """

    def __init__(self, cost: float) -> None:
        self.right = list(RIGHT)
        self.acceptance = 0.7
        self.bytes_a_read = 1.5  # guessed right after a read of the drafter's, if all before it was right
        self._cost = cost
        self._verifying, self._drafting = _Line(1.0, VERIFYING, least=1), _Line(0.0, cost, least=0)
        self._bytes = self._passes = 1.0  # lately, in a pass with a drafter: bytes chosen, and its time
        self._knows = False  # whether the drafter says how sure it is
        self._drafts = True
        self._trial, self._pause, self._alone = TRIAL, PAUSES[0], 0

    @property
    def verifying(self) -> float:
        """Time of verifying one more byte."""
        return self._verifying.slope / self._verifying.start

    @property
    def reading(self) -> float:
        """Time of one read of the drafter; of guessing one byte if it tells of no reads."""
        return self._drafting.slope / self._verifying.start

    @property
    def rate(self) -> float:
        """Bytes in the time of a pass of one byte, with the drafter."""
        return self._bytes / self._passes

    def length(self) -> int:
        """The most bytes to guess next; 0 while guessing has not paid, but for a trial now and then."""
        self._drafts = self._alone == 0
        if not self._drafts:
            self._alone -= 1
            self._trial = TRIAL
            return 0
        if self._knows:
            return LONGEST
        expected, chance, each = 1.0, 1.0, self.reading + self.verifying
        lengths = []
        for length in range(1, LONGEST + 1):
            chance *= self.acceptance
            expected += chance  # the byte after the last right guess counts too
            lengths.append((expected / (1 + length * each), length))
        return max(lengths)[1]

    def begin(self) -> "Confidence":
        """For one guess."""
        worth = max(self.rate, 1.0)
        return Confidence(self.right, worth * self.verifying, worth * (self.reading / self.bytes_a_read))

    def learn(self, confidence: "Confidence", guessed: int, accepted: int) -> None:
        """`accepted` of `guessed` bytes were right; the first wrong one, if any, was judged too, the rest were not."""
        self._knows = self._knows or bool(confidence.leads)
        self.right = [right + FORGETTING * (first - right) for right, first in zip(self.right, RIGHT, strict=True)]
        for index in range(accepted + (accepted < guessed)):
            verdict = float(index < accepted)
            self.acceptance += MEMORY * (verdict - self.acceptance)
            if index < len(confidence.leads):
                lead = confidence.leads[index]
                self.right[lead] += MEMORY * (verdict - self.right[lead])
        if confidence.reads and confidence.reads[0] <= accepted:
            first, second, *_ = *confidence.reads, guessed
            self.bytes_a_read += MEMORY * (max(min(accepted, second) - first, 0.1) - self.bytes_a_read)

    def time(self, guessed: float, taken: float, reads: float, drafting: float, verifying: float) -> None:
        """Guessing so many bytes in so many reads, and verifying them, took so many seconds, and gave `taken` bytes."""
        self._verifying.learn(guessed, verifying, VERIFYING * verifying / (1 + VERIFYING * guessed))
        alone = self._verifying.start
        if not self._drafts:
            return
        self._drafting.learn(reads if self._knows else guessed, drafting, self._cost * alone)
        self._bytes += MEMORY * (taken - self._bytes)
        spent = min((drafting + verifying) / alone, taken + 1)  # more is the machine's pause
        self._passes += MEMORY * (spent - self._passes)
        self._trial = max(self._trial - 1, 0)
        if self._bytes > self._passes:
            self._pause = PAUSES[0]
        elif self._bytes < self._passes - LOSS and not self._trial:
            self._alone = self._pause
            self._pause = min(2 * self._pause, PAUSES[1])


class Confidence:
    """What a drafter asks while it makes one guess: what is worth it.

    That is what is right with chance enough: `byte` for the next byte, `read` for reading on with the drafter's model.
    `leads` are the kinds of lead that the guessed bytes had, from a close call (0) on; `reads` how many bytes were
    guessed when the drafter read on.
    """

    def __init__(self, right: list[float], byte: float, read: float) -> None:
        self._right, self._byte, self._read = right, byte, read
        self._chance = 1.0
        self.leads: list[int] = []
        self.reads: list[int] = []
        self._catching_up = 0

    def byte(self, lead: float) -> bool:
        """Whether a byte that wins by `lead`, in log weights and noise, is to be guessed next."""
        kind = bisect.bisect(LEADS, lead)
        self._chance *= self._right[kind]
        if self._chance < self._byte:
            return False
        self.leads.append(kind)
        return True

    def read(self) -> bool:
        """Whether to read what was guessed in order to guess more."""
        if self._chance < self._read:
            return False
        self.reads.append(len(self.leads))
        return True

    def catch_up(self) -> None:
        """The drafter reads what was decided, which it must before it can guess."""
        self._catching_up += 1

    @property
    def all_reads(self) -> int:
        """How often the drafter read."""
        return len(self.reads) + self._catching_up


class _Line:
    """Seconds of something against a count in it: start + slope * count, fitted to the latest.

    `start` is at least `least` times the slope. Before anything is learnt, start and slope are what is given.
    """

    def __init__(self, start: float, slope: float, least: float) -> None:
        self.start, self.slope, self._least = start, slope, least
        self._count = self._seconds = self._spread = self._common = 0.0

    def learn(self, count: float, seconds: float, usual: float) -> None:
        """One more. `usual` is the slope while the counts are all alike, and say little about it."""
        if self._seconds == 0:
            self._count, self._seconds = count, seconds
        else:
            seconds = min(seconds, PAUSE * (self.start + self.slope * count))
        more, longer = count - self._count, seconds - self._seconds
        self._count += MEMORY * more
        self._seconds += MEMORY * longer
        self._spread += MEMORY * (more * more - self._spread)
        self._common += MEMORY * (more * longer - self._common)
        most = self._seconds / max(self._least + self._count, 1e-9)
        self.slope = min(max((self._common + USUAL * usual) / (self._spread + USUAL), 0.0), most)
        self.start = self._seconds - self.slope * self._count


def agreement(a: bytes, b: bytes) -> int:
    """How many bytes of two strings agree before the first that differ, or one of them ends."""
    for i, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return i
    return min(len(a), len(b))


def too_close(scores: Scores, logits: Logits, temperature: float, tolerance: float) -> bool:
    """Whether logits off by `tolerance` of the largest could make another byte win."""
    if tolerance == 0:
        return False
    second, first = np.partition(scores, -2)[-2:]
    return bool((first - second) * (temperature or 1.0) <= 2 * tolerance * np.abs(logits).max())
