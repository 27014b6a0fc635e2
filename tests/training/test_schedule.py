import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabyte.training.schedule import WARMUP_LIMIT, Budget, learning_rate_factor

fractions = st.floats(0, 1)


@given(st.integers(0, 10**6), fractions, st.integers(0, 2000), fractions)
def test_factor_lies_between_nothing_and_the_peak(step: int, progress: float, warmup: int, final: float) -> None:
    assert 0 <= learning_rate_factor(step, progress, warmup=warmup, final=final) <= 1


@given(st.integers(1, 5000), st.integers(0, 2000), fractions)
def test_factor_rises_then_falls_and_ends_at_final(steps: int, warmup: int, final: float) -> None:
    factors = [learning_rate_factor(s, s / steps, warmup=warmup, final=final) for s in range(0, steps, 1 + steps // 50)]
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert learning_rate_factor(steps, 1.0, warmup=warmup, final=final) == pytest.approx(final)


def test_long_run_warms_up_over_the_papers_500_steps() -> None:
    factors = [learning_rate_factor(s, s / 80_000, warmup=500, final=0.1) for s in range(600)]
    assert factors[0] == pytest.approx(1 / 500)
    assert factors[249] == pytest.approx(0.5, abs=0.01)
    assert factors.index(max(factors)) == 499


def test_short_run_warms_up_in_a_twentieth_of_itself() -> None:
    assert learning_rate_factor(10, WARMUP_LIMIT, warmup=500, final=0.1) > 0.99
    assert learning_rate_factor(10, WARMUP_LIMIT / 2, warmup=500, final=0.1) < 0.51


def test_half_way_is_the_middle_of_the_cosine() -> None:
    assert learning_rate_factor(10**6, 0.5, warmup=500, final=0.1) == pytest.approx(0.55)
    assert learning_rate_factor(10**6, 1 / 3, warmup=1, final=0) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)


@pytest.mark.parametrize(
    ("budget", "progress"),
    [
        (Budget(steps=100), 0.4),
        (Budget(bytes=10_000), 0.2),
        (Budget(minutes=2), 0.5),
        (Budget(steps=100, bytes=10_000, minutes=2), 0.5),
        (Budget(steps=10, minutes=100), 1.0),
    ],
)
def test_progress_is_the_largest_part_that_is_used(budget: Budget, progress: float) -> None:
    assert budget.progress(step=40, bytes=2_000, seconds=60.0) == pytest.approx(progress)


def test_budget_says_its_limits() -> None:
    assert str(Budget(minutes=1.5, steps=2000)) == "1.5 minutes or 2,000 steps"
