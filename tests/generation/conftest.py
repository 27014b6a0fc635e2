"""Tiny models whose logits are decided enough to make real texts of repeated pieces."""

import pytest
import torch

from mambabyte.layers import MambaConfig, NormConfig
from mambabyte.models import ByteLM, ByteLMConfig


def tiny_model(
    seed: int = 0, *, vocab_size: int = 256, n_layers: int = 2, d_model: int = 24, gain: float = 30.0
) -> ByteLM:
    """A random model; `gain` sharpens its head so that sampling is neither uniform nor certain."""
    config = ByteLMConfig(
        d_model=d_model,
        layers={"mamba": MambaConfig(d_state=4)},
        pattern=("mamba",) * n_layers,
        norm=NormConfig(),
        vocab_size=vocab_size,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = ByteLM(config)
    with torch.no_grad():
        model.head.weight.mul_(gain)
        model.embedding.weight.mul_(gain)
    return model.eval()


@pytest.fixture(scope="session")
def model() -> ByteLM:
    return tiny_model()
