"""The mixer's contract on a CPU: the ops it is made of, and its errors."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mambabyte.ops import causal_conv, mixer, selective_scan


def case(batch: int, length: int, channels: int, states: int, rank: int, width: int = 6) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    return {
        "xz": normal(batch, length, 2 * channels),
        "conv_weight": normal(channels, 4),
        "conv_bias": normal(channels),
        "x_proj": normal(rank + 2 * states, channels) * 0.3,
        "dt_proj": normal(channels, rank) * 0.3,
        "A": -torch.exp(normal(channels, states)),
        "D": normal(channels),
        "dt_bias": normal(channels) - 2,
        "out_proj": normal(width, channels),
        "conv_state": normal(batch, 3, channels),
        "state": normal(batch, channels, states),
    }


def test_it_is_the_ops_it_is_made_of() -> None:
    t = case(2, 19, 8, 4, 3)
    resets = torch.arange(19).expand(2, 19) == 7
    x, z = t["xz"].chunk(2, -1)
    u, conv = causal_conv(x, t["conv_weight"], t["conv_bias"], initial_state=t["conv_state"], resets=resets)
    low, B, C = (u @ t["x_proj"].T).split([3, 4, 4], -1)
    dt = low @ t["dt_proj"].T
    options = {"dt_bias": t["dt_bias"], "initial_state": t["state"], "resets": resets}
    y, state = selective_scan(u, dt, t["A"], B, C, t["D"], z, **options)
    expected = F.linear(y, t["out_proj"]), conv, state
    for ours, theirs in zip(mixer(**t, resets=resets), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_wrong_tensors_are_named() -> None:
    t = case(2, 5, 8, 4, 3)
    with pytest.raises(ValueError, match=r"mixer: x_proj has shape \(10, 8\), expected \(11, 8\)"):
        mixer(**t | {"x_proj": t["x_proj"][:10]})
    with pytest.raises(ValueError, match=r"mixer: xz must have dimensions \(B L 2E\)"):
        mixer(**t | {"xz": t["xz"][0]})
