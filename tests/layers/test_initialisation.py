"""Initial values: the distributions that the table in initialisation.py promises."""

import torch
from torch.nn import functional as F

from mambabyte.layers import initialisation


def test_steps_start_between_a_thousandth_and_a_tenth() -> None:
    torch.manual_seed(0)
    dt = F.softplus(initialisation.step_bias(20000))
    assert dt.min() > 0.99e-3
    assert dt.max() < 1.01e-1
    # log-uniform: half of the draws lie below the geometric mean of the bounds
    assert abs((dt < 1e-2).float().mean() - 0.5) < 0.02


def test_decay_is_minus_one_to_minus_n() -> None:
    A = -torch.exp(initialisation.decay(3, 5))
    torch.testing.assert_close(A, -torch.arange(1, 6).float().expand(3, 5))


def test_bounds_follow_the_fan_in() -> None:
    torch.manual_seed(0)
    weight = torch.empty(200, 64)
    initialisation.uniform_fan_in(weight, gain=0.5)
    assert 0.95 * 0.0625 < weight.abs().max() <= 0.0625
    initialisation.embedding(weight)
    assert abs(weight.std() - 0.02) < 1e-3
