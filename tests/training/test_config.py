import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from mambabyte import config as configs
from mambabyte.cli import train as verb
from mambabyte.models import preset
from mambabyte.training import TrainConfig
from mambabyte.training.config import DEFINING, conflicts, merge, read_config
from tests.training.small import MODEL


def test_every_key_is_an_option_and_every_option_a_key() -> None:
    options = set(inspect.signature(verb.train).parameters) - set(verb.NO_KEYS)
    keys = {field.name for field in dataclasses.fields(TrainConfig)} - {"model"}  # a table, for files only
    assert options == keys


def test_defaults_are_the_papers() -> None:
    config = TrainConfig(preset="mambabyte-353m")
    assert (config.betas, config.epsilon, config.warmup, config.clip) == ((0.9, 0.95), 1e-8, 500, 0.1)


def test_later_layers_win_and_a_preset_drops_an_earlier_model() -> None:
    low = {"model": configs.to_dict(MODEL), "steps": 5, "clip": 1.0}
    merged = merge(low, {"preset": "mambabyte-tiny", "clip": 2})
    assert (merged.preset, merged.model, merged.steps, merged.clip) == ("mambabyte-tiny", None, 5, 2.0)
    assert merge({"preset": "mambabyte-tiny"}, low).architecture() == MODEL


def test_toml_file_and_saved_json_give_the_same_config(tmp_path: Path) -> None:
    toml, saved = tmp_path / "a.toml", tmp_path / "train.json"
    toml.write_text('preset = "mambabyte-tiny"\ndata = ["a", "b*"]\nminutes = 3\nbetas = [0.9, 0.99]\n')
    config = merge(read_config(toml))
    assert (config.data, config.minutes, config.betas) == (("a", "b*"), 3.0, (0.9, 0.99))
    saved.write_text(json.dumps(configs.to_dict(config)))
    assert merge(read_config(saved)) == config


def test_unknown_key_names_the_file_the_nearest_key_and_all_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("learning_rat = 1\n")
    with pytest.raises(ValueError, match="learning_rat") as error:
        read_config(path)
    assert str(path) in str(error.value)
    assert "did you mean 'learning_rate'" in str(error.value)
    assert all(field.name in str(error.value) for field in dataclasses.fields(TrainConfig))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"minutes": 0.0}, "minutes must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0"),
        ({"minutes": float("inf")}, "minutes must be a finite number above 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**63}, "seed must be from 0"),
        ({"betas": (0.9,)}, "two numbers"),
        ({"betas": (0.9, 1.0)}, "two numbers"),
        ({"final_learning_rate": 2.0}, "from 0 to 1"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative"),
        ({"keep": 0}, "keep must be at least 1"),
    ],
)
def test_impossible_values_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(**changes)


def test_one_model_and_only_one() -> None:
    for config in (TrainConfig(), TrainConfig(preset="mambabyte-tiny", model=MODEL)):
        with pytest.raises(ValueError, match="which model"):
            config.architecture()
    assert TrainConfig(preset="mambabyte-tiny").architecture() == preset("mambabyte-tiny")


def test_conflicts_are_what_defines_the_computation() -> None:
    before = TrainConfig(preset="mambabyte-tiny", batch=2, context=8, learning_rate=1e-3)
    same = dataclasses.replace(before, preset=None, model=preset("mambabyte-tiny"), minutes=3.0, keep=9, out="else")
    assert conflicts(same, before) == []
    other = dataclasses.replace(before, preset="mambabyte-2m", seed=1)
    assert conflicts(other, before) == ["the model is mambabyte-2m, was mambabyte-tiny", "seed is 1, was 0"]
    assert set(DEFINING) <= {field.name for field in dataclasses.fields(TrainConfig)}
