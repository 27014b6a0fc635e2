"""torch.compile keeps every op whole on a GPU: one graph, the bits of the plain call, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mambabyte.ops import causal_conv, cross_entropy, mixer, norm, selective_scan

from .test_causal_conv import problem as convolution
from .test_mixer import on_gpu
from .test_selective_scan import problem as scan

pytestmark = pytest.mark.gpu


def normalisation() -> dict[str, Tensor]:
    g = torch.Generator("cuda").manual_seed(0)
    x, residual = (torch.randn(2, 40, 96, generator=g, device="cuda") for _ in range(2))
    return {"x": x.bfloat16(), "weight": torch.ones(96, device="cuda"), "residual": residual}


def prediction() -> dict[str, Tensor]:
    g = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(2, 40, 256, generator=g, device="cuda").bfloat16()
    return {"logits": logits, "targets": torch.randint(0, 256, (2, 40), generator=g, device="cuda")}


CASES: dict[Callable[..., tuple[Tensor, ...]], Callable[[], dict[str, Tensor]]] = {
    causal_conv: lambda: convolution(2, 40, 96, 4, torch.bfloat16),
    selective_scan: lambda: scan(2, 40, 32, 16, torch.bfloat16),
    norm: normalisation,
    cross_entropy: prediction,
    mixer: lambda: on_gpu(batch=2, length=40, channels=96, states=16, rank=8, width=48),
}


def results(op: Callable[..., tuple[Tensor, ...]], case: dict[str, Tensor]) -> list[Tensor]:
    leaves = {k: v.detach().requires_grad_() if v.is_floating_point() else v for k, v in case.items()}
    outputs = op(**leaves)
    floats = [out for out in outputs if out.is_floating_point()]
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return [*outputs, *torch.autograd.grad(floats, wanted, [torch.ones_like(out) for out in floats])]


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.__name__)
def test_one_graph_and_the_same_bits(op: Callable[..., tuple[Tensor, ...]]) -> None:
    case = CASES[op]()
    torch._dynamo.reset()
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for found, expected in zip(results(compiled, case), results(op, case), strict=True):
        assert torch.equal(found, expected)
