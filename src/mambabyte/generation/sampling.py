"""Which byte comes next: settings, the distribution they make of the logits, and a choice that a seed decides.

The choice is a race (https://arxiv.org/abs/1411.0030): byte b wins if log p(b) + g(b) is the largest, with independent
Gumbel noise g, and then b has probability p(b) exactly. The noise at position t is a pure function of (seed, t). So the
bytes depend on the model, the prompt, the settings and the seed only: not on the other rows of a batch, and not on
whether or how a drafter guessed ahead.
"""

import dataclasses
import math
from collections.abc import Callable, Collection
from functools import cached_property
from numbers import Integral, Real
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mambabyte.models.byte_lm import BYTES

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]

NOISE_BLOCK = 32  # positions whose noise is drawn at once: 2 microseconds a byte instead of 10
TINY = 1e-30  # what float32 is divided by is at least this
COLDEST = 1e-200  # below it a temperature could only overflow: any two logits that differ are as far apart as need be


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

    @cached_property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p removes bytes."""
        some = self.top_k is not None and self.top_k < BYTES, self.top_p is not None and self.top_p < 1, self.min_p
        return self.temperature > 0 and any(some)


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
    expect_finite(scores.max())
    return _tempered(scores, settings)


def expect_finite(best: float) -> None:
    """Raise ValueError unless the largest of some scores is finite; it is not if any of them is NaN or infinite."""
    if not math.isfinite(best):
        raise ValueError(
            "the model's logits are not finite, so no byte can be drawn: "
            "its weights, or the state it continues, are damaged"
        )


def _tempered(scores: Scores, settings: Sampling) -> Scores:
    """Temperature, top-k, top-p and min-p on the last axis of `scores` (..., n), which may be written into."""
    if settings.temperature not in (0, 1):
        scores = scores / max(settings.temperature, COLDEST)
    return _truncate(scores, settings) if settings.truncates else scores


def _truncate(scores: Scores, settings: Sampling) -> Scores:
    """Top-k, then top-p, then min-p on log weights (..., n)."""
    scores -= scores.max(-1, keepdims=True)
    if settings.top_k is not None or settings.top_p is not None:
        for row in scores.reshape(-1, scores.shape[-1]):
            _keep_likeliest(row, settings)
    if settings.min_p:
        scores[scores < math.log(settings.min_p)] = -np.inf
    return scores


def _keep_likeliest(scores: Scores, settings: Sampling) -> None:
    """Top-k, then top-p, on log weights (n,) in place."""
    order = (-scores).argsort(kind="stable")[: settings.top_k]
    if settings.top_p is not None and settings.top_p < 1:
        total = np.exp(scores[order]).cumsum()
        order = order[: 1 + int(total[:-1].searchsorted(settings.top_p * total[-1]))]
    kept = scores[order]
    scores.fill(-np.inf)
    scores[order] = kept


def probabilities(scores: Scores) -> Scores:
    """log weights (256,) -> probabilities (256,) that sum to 1."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


class Noise:
    """Gumbel noise g(position) (256,) float64, a pure function of (seed, position): Philox in counter mode
    (https://doi.org/10.1145/2063384.2063405).

    The two latest blocks are kept, for a drafter looks ahead into the next one.
    """

    def __init__(self, seed: int) -> None:
        expect_integer("seed", seed, least=0)
        if seed >= 2**64:
            raise ValueError(f"seed must be less than 2**64, got {seed}")
        self.seed = int(seed)
        self._generator = np.random.Generator(np.random.Philox(key=self.seed))
        self._start = self._generator.bit_generator.state
        self._blocks: dict[int, tuple[Scores, NDArray[np.float32]]] = {}

    def __getitem__(self, position: int) -> Scores:
        block, offset = divmod(position, NOISE_BLOCK)
        return self._block(block)[0][offset]

    def waits(self, position: int) -> NDArray[np.float32]:
        """(256,) e^-g(position): how long a byte of weight 1 takes to come, where the first to come is chosen."""
        block, offset = divmod(position, NOISE_BLOCK)
        return self._block(block)[1][offset]

    def rows(self, position: int, count: int) -> Scores:
        """(count, 256) the noise of so many positions from `position` on."""
        block, offset = divmod(position, NOISE_BLOCK)
        values, _ = self._block(block)
        if offset + count <= NOISE_BLOCK:
            return values[offset : offset + count]
        rest = offset + count - NOISE_BLOCK
        return np.concatenate((values[offset:], self.rows(position + count - rest, rest)))

    def _block(self, block: int) -> tuple[Scores, NDArray[np.float32]]:
        """The noise and the waits of its positions, each (32, 256)."""
        if (known := self._blocks.get(block)) is not None:
            return known
        self._start["state"]["counter"][2] = block
        self._generator.bit_generator.state = self._start
        waits = np.maximum(-np.log1p(-self._generator.random((NOISE_BLOCK, BYTES))), 2.0**-54)
        if len(self._blocks) == 2:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[block] = -np.log(waits), waits.astype(np.float32)
        return self._blocks[block]


class Sampler:
    """One row's draws: settings and noise, no other state. `window` is how many bytes back the repetition penalty
    looks; 0 if there is none."""

    def __init__(self, settings: Sampling, seed: int) -> None:
        self.settings = settings
        self.noise = Noise(seed)
        self.window = settings.repetition_window if settings.repetition_penalty != 1 else 0

    def scores(
        self, logits: NDArray[np.float32], position: int, recent: bytes = b"", allowed: Mask | None = None
    ) -> Scores:
        """(256,) log weights plus the noise of `position`: the largest, and of equals the lowest, is the byte there.

        `recent` are the last `window` bytes before it. Raises as `log_weights`.
        """
        scores = log_weights(logits, self.settings, set(recent), allowed)
        return scores + self.noise[position] if self.settings.temperature > 0 else scores

    def race(self, weights: NDArray[np.float32], position: int) -> tuple[int | None, float]:
        """As `lead` of `scores` from weights (256,), without penalty, constraint and truncation; None if all are 0.

        log w + g is the largest where w / e^-g is, which takes no logarithms. The weights are those before the
        temperature, up to a common factor, and 0 where a byte cannot come.
        """
        temperature = self.settings.temperature
        if temperature not in (0, 1):
            weights = (weights / max(weights.item(weights.argmax()), TINY)) ** (1 / max(temperature, TINY))
        pace = weights / self.noise.waits(position) if temperature > 0 else weights.copy()
        best = int(pace.argmax())
        first = pace.item(best)
        pace[best] = 0
        second = pace.item(pace.argmax())
        if not first:
            return None, 0.0
        return best, math.log(first / second) if second else math.inf


def lead(scores: Scores) -> tuple[int, float]:
    """The place of the largest score, and by how much it leads."""
    best = int(scores.argmax())
    others = scores.copy()
    others[best] = -np.inf
    return best, scores.item(best) - others.item(others.argmax())


def winners(logits: NDArray[np.float32], settings: Sampling, noise: Scores | None) -> list[int]:
    """The byte that wins in each row of logits (n, 256), where nothing else decides: no penalty and no constraint.

    noise: (n, 256) of each row's position; None at temperature 0. Each is the byte that `Sampler.scores` makes win.
    Raises as `log_weights`.
    """
    if noise is None:
        best = logits.argmax(-1)
        scores: NDArray[Any] = logits
    else:
        scores = _tempered(logits.astype(np.float64), settings) + noise
        best = scores.argmax(-1)
    for row, byte in enumerate(chosen := best.tolist()):
        expect_finite(scores[row, byte])
    return chosen
