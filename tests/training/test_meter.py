import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambabyte.training.meter import Meter

CPU = torch.device("cpu")
steps = st.lists(st.tuples(st.floats(0, 1e5), st.integers(1, 10**6), st.floats(0, 1e3)), min_size=1, max_size=8)


def filled(steps: list[tuple[float, int, float]], meter: Meter | None = None) -> Meter:
    meter = meter or Meter(CPU)
    for nats, count, norm in steps:
        meter.add(torch.tensor(nats), count, torch.tensor(norm))
    return meter


@given(steps)
def test_mean_weighs_every_byte_alike(steps: list[tuple[float, int, float]]) -> None:
    meter = filled(steps)
    expected = sum(nats for nats, _, _ in steps) / math.log(2) / sum(count for _, count, _ in steps)
    assert meter.bits_per_byte() == pytest.approx(expected, rel=1e-6, abs=1e-30)
    assert meter.gradient_norm() == pytest.approx(sum(norm for _, _, norm in steps) / len(steps), rel=1e-6, abs=1e-30)


@given(steps, steps)
def test_goes_on_exactly_after_a_trip_through_json(before: list, after: list) -> None:
    resumed = Meter(CPU)
    resumed.restore(json.loads(json.dumps(filled(before).to_dict())))
    whole, resumed = filled(before + after), filled(after, resumed)
    assert resumed.to_dict() == whole.to_dict()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 2])
def test_one_bad_number_is_noticed_until_the_interval_ends(bad: float, where: int) -> None:
    meter = filled([(1.0, 1, 1.0)])
    assert meter.is_finite()
    numbers = [1.0, 1, 1.0]
    numbers[where] = bad
    filled([tuple(numbers), (1.0, 1, 1.0)], meter)  # type: ignore[list-item]
    assert not meter.is_finite()
    meter.clear()
    assert meter.is_finite()
    assert (meter.steps, meter.bytes, meter.bits_per_byte()) == (0, 0, 0.0)
