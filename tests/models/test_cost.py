"""The cost model against the models themselves and the published figures."""

import dataclasses

import pytest
import torch

from mambabyte.models import PRESETS, ByteLM, model_cost, preset

# (parameters, half of its last printed digit, FLOPs per byte); all in millions
PUBLISHED = {
    "mambabyte-353m": (353.9, 0.05, 712.9),
    "mambabyte-374m": (374.0, 0.05, None),
    "mambabyte-972m": (973.9, 0.05, 1955),
    "mambabyte-1.6b": (1606, 0.5, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str) -> None:
    parameters, half_a_digit, flops = PUBLISHED[name]
    cost = model_cost(preset(name))
    assert abs(cost.parameters / 1e6 - parameters) <= half_a_digit
    if flops is not None:
        assert abs(cost.flops_per_byte / 1e6 - flops) < 1


def test_shapes_of_the_published_models() -> None:
    assert len(preset("mambabyte-353m").pattern) == 53
    released = preset("mambabyte-374m")
    assert len(released.pattern) == 56
    assert (released.norm.kind, released.norm.bias, released.tied_head) == ("layer", True, False)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tied_head", [False, True])
def test_counts_are_those_of_the_model(name: str, tied_head: bool) -> None:
    config = dataclasses.replace(preset(name), tied_head=tied_head)
    with torch.device("meta"):
        model = ByteLM(config)
    cost = model_cost(config)
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_biases_of_the_projections_are_counted() -> None:
    config = preset("mambabyte-tiny")
    layers = {name: dataclasses.replace(layer, bias=True) for name, layer in config.layers.items()}
    biased = dataclasses.replace(config, layers=layers)
    with torch.device("meta"):
        model = ByteLM(biased)
    assert model_cost(biased).parameters == sum(p.numel() for p in model.parameters()) > model_cost(config).parameters
    assert model_cost(biased).flops_per_byte == model_cost(config).flops_per_byte


def test_state_bytes_are_those_of_the_state() -> None:
    model = ByteLM.from_preset("mambabyte-tiny")
    assert model_cost(model.config).state_bytes == model.init_state(1).nbytes
