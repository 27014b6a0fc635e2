"""How far a run is, and how large a step it takes there.

A run ends at the first of its limits: minutes, steps or bytes. Its progress, from 0 to 1, is the largest of the
fractions used up, and the learning rate is a function of progress and step alone, so a run limited by steps or bytes
resumes on the very same curve, and one limited by time finishes its cosine when the time is over, however fast the
machine is.
"""

import dataclasses
import math

WARMUP_LIMIT = 0.05  # of the run: a run of a few hundred steps warms up in a twentieth of itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of a run; None is no limit of that kind."""

    minutes: float | None = None
    steps: int | None = None
    bytes: int | None = None

    def progress(self, step: int, bytes: int, seconds: float) -> float:
        """The part of the run that is over, 0 to 1, after `step` steps, `bytes` scored bytes and `seconds`."""
        used = (step, self.steps), (bytes, self.bytes), (seconds, self.minutes and 60 * self.minutes)
        return min(1.0, max((part / whole for part, whole in used if whole), default=0.0))

    def __str__(self) -> str:
        limits = [
            self.minutes and f"{self.minutes:g} minutes",
            self.steps and f"{self.steps:,} steps",
            self.bytes and f"{self.bytes:,} bytes",
        ]
        return " or ".join(limit for limit in limits if limit)


def learning_rate_factor(step: int, progress: float, *, warmup: int, final: float) -> float:
    """The learning rate of the step after `step` steps, as a fraction of its peak.

    Linear warm-up over `warmup` steps or the first twentieth of the run, whichever is over first, times a cosine from 1
    at the start of the run to `final` at its end.
    """
    rise = max((step + 1) / max(warmup, 1), progress / WARMUP_LIMIT)
    cosine = final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    return min(1.0, rise) * cosine
