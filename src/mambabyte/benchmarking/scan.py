"""The selective scan with everything that a layer fuses into it: softplus, dt's bias, D and the gate."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambabyte.benchmarking.floors import Work
from mambabyte.benchmarking.operators import Case, Contestant, Operator
from mambabyte.benchmarking.peers import scans
from mambabyte.ops import selective_scan

STATES = 16


def work(elements: int, dtype: torch.dtype, states: int = STATES) -> tuple[Work, Work]:
    """Of forward and backward over so many (position, channel): B, C and their gradients are left out as negligible.

    Forward reads x, dt, z and writes y; an exponential a state, four for softplus and gate. Backward reads x, dt, z, dy
    and writes three gradients; two exponentials a state, since the states are computed again, and five for the rest.
    """
    forward = Work(4 * dtype.itemsize * elements, (states + 4) * elements)
    return forward, Work(7 * dtype.itemsize * elements, (2 * states + 5) * elements)


def inputs(
    batch: int, length: int, channels: int, states: int = STATES, *, device: torch.device, dtype: torch.dtype
) -> Case:
    """Tensors of `selective_scan` by name, as in a trained layer: steps from 0.01 to 0.1, A about -1 to -N."""
    g = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device)

    decay = 0.8 + 0.4 * torch.rand(channels, states, generator=g, device=device)
    return {
        "x": normal(batch, length, channels).to(dtype),
        "dt": (0.5 * normal(batch, length, channels)).to(dtype),
        "A": -decay * torch.arange(1, states + 1, device=device),
        "B": normal(batch, length, states).to(dtype),
        "C": normal(batch, length, states).to(dtype),
        "D": 1 + 0.1 * normal(channels),
        "z": normal(batch, length, channels).to(dtype),
        "dt_bias": 0.1 * normal(channels) - 3.5,
    }


def plain(case: Case) -> Case:
    """x, dt, A, B and C of the case with the step already computed: the scan that every package has."""
    return {
        "x": case["x"],
        "dt": F.softplus(case["dt"] + case["dt_bias"]),
        "A": case["A"],
        "B": case["B"],
        "C": case["C"],
    }


SCAN = Operator(
    name="scan",
    ours=Contestant(lambda **case: selective_scan(**case)[0]),
    reference=Contestant(lambda **case: selective_scan(**case, backend="reference")[0]),
    peers=scans,
    inputs=inputs,
    work=work,
)
