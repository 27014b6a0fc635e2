"""Which byte comes next: settings, the distribution they make of the logits, and a choice that a seed decides.

The choice is a race (https://arxiv.org/abs/1411.0030): byte b wins if log p(b) + g(b) is the largest, with independent
Gumbel noise g, and then b has probability p(b) exactly. The noise at position t is a pure function of (seed, t). So the
bytes depend on the model, the prompt, the settings and the seed only: not on the other rows of a batch, and not on
whether or how a drafter guessed ahead.
"""

import dataclasses
import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mambabyte.models.byte_lm import BYTES

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]

NOISE_BLOCK = 32  # positions whose noise is drawn at once: 5 microseconds a byte instead of 20


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments."""

    repetition_penalty: float
    repetition_window: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next byte is drawn from the logits. The settings act in the order of the fields.

    repetition_penalty: the logit of every byte among the last `repetition_window` ones (prompt and output) is divided
        by it where positive and multiplied by it where negative (https://arxiv.org/abs/1909.05858); 1 is none.
    temperature: divides the logits; 0 is greedy (the most likely byte, the lowest of equals).
    top_k: keep the k most likely bytes (the lowest of equals).
    top_p: keep the most likely bytes until their sum reaches top_p (https://arxiv.org/abs/1904.09751).
    min_p: keep bytes at least min_p times as likely as the most likely one (https://arxiv.org/abs/2407.01082).
    """

    repetition_penalty: float = 1.0
    repetition_window: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        expect("temperature", self.temperature, lambda v: 0 <= v < math.inf, "0 (greedy) or more")
        expect("repetition_penalty", self.repetition_penalty, lambda v: 0 < v < math.inf, "above 0 (1 is none)")
        expect_integer("repetition_window", self.repetition_window, least=0)
        if self.top_k is not None:
            expect_integer("top_k", self.top_k, least=1)
        if self.top_p is not None:
            expect("top_p", self.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1")
        if self.min_p is not None:
            expect("min_p", self.min_p, lambda v: 0 <= v <= 1, "from 0 to 1")


def expect(name: str, value: object, fits: Callable[[Any], bool], range_: str) -> None:
    """Raise ValueError, naming the setting and its range, unless `value` is a number that fits."""
    if isinstance(value, bool) or not isinstance(value, Real) or not fits(value):
        raise ValueError(f"{name} must be a number {range_}, got {value!r}")


def expect_integer(name: str, value: object, least: int) -> None:
    """Raise ValueError, naming the setting, unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def log_weights(
    logits: NDArray[np.float32], settings: Sampling, recent: Collection[int] = (), allowed: Mask | None = None
) -> Scores:
    """Unnormalised log-probabilities (256,) float64 of the next byte; -inf where a byte cannot come.

    Args:
        logits: (256,) of the model.
        recent: bytes to which the repetition penalty applies.
        allowed: (256,) bytes that a constraint lets through, applied first; None lets all through.

    Raises ValueError when the logits are NaN or infinite, or nothing is allowed.
    """
    scores = logits.astype(np.float64)
    if settings.repetition_penalty != 1 and recent:
        index = np.fromiter(recent, dtype=np.intp)
        seen = scores[index]
        scores[index] = np.where(seen > 0, seen / settings.repetition_penalty, seen * settings.repetition_penalty)
    if allowed is not None:
        scores[~allowed] = -np.inf
    top = scores.max()
    if not math.isfinite(top):
        raise ValueError(
            "the model's logits are not finite, so no byte can be drawn: "
            "its weights, or the state it continues, are damaged"
        )
    if settings.temperature == 0:
        return scores
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        scores = (scores - top) / settings.temperature
    return _truncate(scores, settings)


def _truncate(scores: Scores, settings: Sampling) -> Scores:
    """Top-k, then top-p, then min-p on log weights whose maximum is 0."""
    if settings.top_k is not None and settings.top_k < BYTES:
        scores[np.argsort(-scores, kind="stable")[settings.top_k :]] = -np.inf
    if settings.top_p is not None and settings.top_p < 1:
        order = np.argsort(-scores, kind="stable")
        weights = np.exp(scores[order])
        before = np.cumsum(weights) - weights  # of the more likely bytes
        scores[order[before >= settings.top_p * weights.sum()]] = -np.inf
    if settings.min_p:
        scores[scores < math.log(settings.min_p)] = -np.inf
    return scores


def probabilities(scores: Scores) -> Scores:
    """log weights (256,) -> probabilities (256,) that sum to 1."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


class Noise:
    """Gumbel noise g(position) (256,) float64, a pure function of (seed, position): Philox in counter mode
    (https://doi.org/10.1145/2063384.2063405)."""

    def __init__(self, seed: int) -> None:
        expect_integer("seed", seed, least=0)
        if seed >= 2**64:
            raise ValueError(f"seed must be less than 2**64, got {seed}")
        self.seed = int(seed)
        self._block, self._values = -1, np.empty((0, BYTES))

    def __getitem__(self, position: int) -> Scores:
        block, offset = divmod(position, NOISE_BLOCK)
        if block != self._block:
            generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, block, 0]))
            exponential = -np.log1p(-generator.random((NOISE_BLOCK, BYTES)))
            self._block, self._values = block, -np.log(np.maximum(exponential, 2.0**-54))
        return self._values[offset]


class Sampler:
    """One row's draws: settings and noise, no other state."""

    def __init__(self, settings: Sampling, seed: int) -> None:
        self.settings = settings
        self.noise = Noise(seed)

    @property
    def window(self) -> int:
        """How many bytes back the repetition penalty looks; 0 if there is none."""
        return self.settings.repetition_window if self.settings.repetition_penalty != 1 else 0

    def scores(
        self, logits: NDArray[np.float32], position: int, recent: bytes = b"", allowed: Mask | None = None
    ) -> Scores:
        """(256,) log weights plus the noise of `position`: the largest, and of equals the lowest, is the byte there.

        `recent` are the last `window` bytes before it. Raises as `log_weights`.
        """
        scores = log_weights(logits, self.settings, set(recent), allowed)
        return scores + self.noise[position] if self.settings.temperature > 0 else scores
