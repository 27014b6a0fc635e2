"""The mixer on a GPU against the ops it is made of, in float64: values, states and every gradient."""

import pytest
import torch
from torch import Tensor

from mambabyte.ops import mixer

from ..test_mixer import case
from .compare import outputs_and_gradients

pytestmark = pytest.mark.gpu


def on_gpu(**sizes: int) -> dict[str, Tensor]:
    tensors = {name: tensor.cuda() for name, tensor in case(**sizes).items()}
    tensors["x_proj"], tensors["out_proj"] = tensors["x_proj"] * 0.2, tensors["out_proj"] * 0.2
    return tensors


@pytest.mark.parametrize("with_states", [True, False])
@pytest.mark.parametrize("with_resets", [True, False])
@pytest.mark.parametrize(("channels", "states", "rank"), [(96, 16, 8), (40, 16, 4), (33, 5, 3)])
def test_float32(channels: int, states: int, rank: int, with_resets: bool, with_states: bool) -> None:
    tensors = on_gpu(batch=2, length=150, channels=channels, states=states, rank=rank, width=48)
    if not with_states:
        del tensors["conv_state"], tensors["state"]
    if with_resets:
        tensors["resets"] = torch.rand(2, 150, device="cuda") < 0.02
    compare(tensors, torch.float32, 2e-5)


def test_bfloat16() -> None:
    tensors = on_gpu(batch=2, length=150, channels=96, states=16, rank=8, width=48)
    compare(tensors, torch.bfloat16, 2e-2)


def compare(tensors: dict[str, Tensor], dtype: torch.dtype, tolerance: float) -> None:
    """xz in `dtype`; matrix products of rounded operands are what the tolerance of bfloat16 allows for."""
    exact = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
    ours = tensors | {"xz": tensors["xz"].to(dtype)}
    exact["xz"] = ours["xz"].double()
    weights = [torch.randn(t.shape, device="cuda") for t in mixer(**exact, backend="reference")]
    expected = outputs_and_gradients(mixer, exact, weights, backend="reference")
    for name, value in outputs_and_gradients(mixer, ours, weights, backend="cuda").items():
        error = ((value.double() - expected[name]).norm() / expected[name].norm()).item()
        assert error <= tolerance, f"{name}: relative error {error:.1e}"
