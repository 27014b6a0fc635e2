import dataclasses

import pytest
import torch

from mambabyte.models import PRESETS, model_cost
from mambabyte.training import TrainConfig
from mambabyte.training.recipe import Recipe, choose

CPU, PLENTY = torch.device("cpu"), 1 << 40


def chosen(preset: str, corpus: int = PLENTY, **given: object) -> Recipe:
    return choose(TrainConfig(preset=preset, **given), PRESETS[preset], CPU, corpus)  # type: ignore[arg-type]


def test_the_353m_model_gets_the_papers_recipe() -> None:
    recipe = chosen("mambabyte-353m")
    assert (recipe.batch, recipe.context) == (48, 8192)
    assert recipe.learning_rate == pytest.approx(4e-4, rel=0.01)
    assert recipe.bytes == pytest.approx(80_000 * 48 * 8192, rel=0.02)


def test_smaller_models_take_smaller_steps_at_higher_rates() -> None:
    sizes = sorted(PRESETS, key=lambda name: model_cost(PRESETS[name]).parameters)
    recipes = [chosen(name) for name in sizes]
    per_step = [recipe.batch * recipe.context for recipe in recipes]
    rates = [recipe.learning_rate for recipe in recipes]
    assert per_step == sorted(per_step)
    assert rates == sorted(rates, reverse=True)


def test_what_is_given_stays() -> None:
    given = {"batch": 3, "context": 77, "micro_batch": 2, "learning_rate": 0.5, "steps": 9}
    recipe = chosen("mambabyte-tiny", **given)
    assert {name: getattr(recipe, name) for name in given} == given
    assert recipe.bytes is None, "a limit that is given is the only one"


def test_context_fits_the_corpus_and_micro_batch_the_batch() -> None:
    recipe = chosen("mambabyte-353m", corpus=100)
    assert recipe.context == 100
    assert 1 <= recipe.micro_batch <= recipe.batch
    assert chosen("mambabyte-tiny", batch=2, micro_batch=5).micro_batch == 2


def test_a_choice_chosen_again_is_the_same() -> None:
    config = TrainConfig(preset="mambabyte-5m")
    first = choose(config, config.architecture(), CPU, PLENTY)
    again = dataclasses.replace(config, **dataclasses.asdict(first))
    assert choose(again, config.architecture(), CPU, PLENTY) == first


def test_a_model_too_large_for_the_memory_recomputes_its_layers() -> None:
    assert chosen("mambabyte-353m").checkpoint_activations
    assert not chosen("mambabyte-353m", checkpoint_activations=False).checkpoint_activations
    assert not chosen("mambabyte-5m").checkpoint_activations
