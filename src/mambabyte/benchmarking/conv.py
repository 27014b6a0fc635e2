"""The causal convolution as a layer uses it: four taps, bias and SiLU."""

import torch
from torch import Tensor

from mambabyte.benchmarking.floors import Work
from mambabyte.benchmarking.operators import Case, Contestant, Operator
from mambabyte.benchmarking.peers import convolutions
from mambabyte.ops import causal_conv

WIDTH = 4


def work(elements: int, dtype: torch.dtype) -> tuple[Work, Work]:
    """Of forward, which reads x and writes y, and of backward, which reads x and dy and writes dx."""
    return Work(2 * dtype.itemsize * elements), Work(3 * dtype.itemsize * elements)


def inputs(batch: int, length: int, channels: int, *, device: torch.device, dtype: torch.dtype) -> Case:
    """Tensors of `causal_conv` by name; the weights are float32, as a model keeps them."""
    g = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device)

    return {
        "x": normal(batch, length, channels).to(dtype),
        "weight": 0.5 * normal(channels, WIDTH),
        "bias": 0.1 * normal(channels),
    }


CONV = Operator(
    name="conv",
    ours=Contestant(lambda **case: causal_conv(**case)[0]),
    reference=Contestant(lambda **case: causal_conv(**case, backend="reference")[0]),
    peers=convolutions,
    inputs=inputs,
    work=work,
)
