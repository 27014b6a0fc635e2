"""Random inputs for the ops, shared by the tests of every backend."""

import torch
from torch import Tensor


def scan_inputs(
    batch: int,
    length: int,
    channels: int,
    states: int = 16,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    resets: bool = True,
    initial: bool = True,
) -> dict[str, Tensor]:
    """Arguments of `selective_scan` by name, with decays from almost 1 (long memory) to almost 0."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    case = {
        "x": normal(batch, length, channels).to(dtype),
        "dt": (normal(batch, length, channels) - 2).to(dtype),
        "A": -torch.arange(1, states + 1).float() * (0.5 + torch.rand(channels, states, generator=g)),
        "B": normal(batch, length, states).to(dtype),
        "C": normal(batch, length, states).to(dtype),
        "D": normal(channels),
        "z": normal(batch, length, channels).to(dtype),
        "dt_bias": normal(channels) - 1,
    }
    if initial:
        case["initial_state"] = normal(batch, channels, states)
    if resets:
        case["resets"] = torch.rand(batch, length, generator=g) < 0.1
    return case


def ending(case: dict[str, Tensor], ends: list[int]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The case with steps of 0 from each row's end on, and its rows alone, cut off there."""
    stopped = case | {"dt": case["dt"].clone()}
    alone = []
    for row, end in enumerate(ends):
        stopped["dt"][row, end:] = -torch.inf
        cut = {name: case[name][row : row + 1, :end] for name in ("x", "dt", "B", "C", "z")}
        alone.append(case | cut | {"initial_state": case["initial_state"][row : row + 1]})
    return stopped, alone


def conv_inputs(
    batch: int,
    length: int,
    channels: int,
    width: int = 4,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    resets: bool = True,
    initial: bool = True,
) -> dict[str, Tensor]:
    """Arguments of `causal_conv` by name."""
    g = torch.Generator().manual_seed(seed)
    case = {
        "x": torch.randn(batch, length, channels, generator=g).to(dtype),
        "weight": torch.randn(channels, width, generator=g),
        "bias": torch.randn(channels, generator=g),
    }
    if initial:
        case["initial_state"] = torch.randn(batch, width - 1, channels, generator=g).to(dtype)
    if resets:
        case["resets"] = torch.rand(batch, length, generator=g) < 0.2
    return case


def floats(case: dict[str, Tensor]) -> dict[str, Tensor]:
    """The differentiable arguments of a case."""
    return {name: tensor for name, tensor in case.items() if tensor.is_floating_point()}


def in_float64(case: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same case in float64."""
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in case.items()}
