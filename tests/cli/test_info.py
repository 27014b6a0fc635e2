"""`mambabyte info`: presets, model folders and runs."""

import dataclasses
import json

import pytest

from mambabyte.checkpoints import save_model
from mambabyte.cli.app import run
from mambabyte.cli.info import fold
from mambabyte.models import PRESETS, ByteLM
from mambabyte.training import TrainConfig, train


def described(capsys, *arguments):
    assert run(["info", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_preset_is_listed_with_its_size(capsys):
    listed = described(capsys)["presets"]
    assert set(listed) == set(PRESETS)
    tiny = ByteLM.from_preset("mambabyte-tiny")
    assert listed["mambabyte-tiny"]["parameters"] == sum(p.numel() for p in tiny.parameters())
    assert round(listed["mambabyte-353m"]["flops_per_byte"] / 1e6) == 713
    assert run(["info"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS)


def test_a_preset_by_name(capsys):
    preset = described(capsys, "mambabyte-tiny")
    state = ByteLM.from_preset("mambabyte-tiny").init_state()
    assert preset["state_bytes"] == state.nbytes
    assert preset["pattern"] == ["mamba"] * 4
    assert preset["config"]["d_model"] == 128
    assert run(["info", "mambabyte-tiny"]) == 0
    assert "mamba x 4" in capsys.readouterr().out


def test_a_model_folder(capsys, tmp_path):
    model = ByteLM.from_preset("mambabyte-tiny", seed=0)
    save_model(model, tmp_path / "m")
    folder = described(capsys, str(tmp_path / "m"))
    assert folder["parameters"] == sum(p.numel() for p in model.parameters())
    assert folder["bytes_on_disk"] > 4 * folder["parameters"]
    assert folder["dtype"] == "float32"
    assert (folder["training"], folder["trained_dtype"]) == (None, None)
    assert run(["info", str(tmp_path / "m")]) == 0
    assert "on disk" in capsys.readouterr().out


def test_a_run_says_how_far_it_is(capsys, tmp_path):
    (tmp_path / "data").write_bytes(b"some text to learn from. " * 40)
    config = TrainConfig(
        preset="mambabyte-tiny", data=(str(tmp_path / "data"),), out=str(tmp_path / "run"), steps=2, batch=1, context=32
    )
    train(dataclasses.replace(config, precision="bfloat16"))
    capsys.readouterr()
    result = described(capsys, str(tmp_path / "run"))
    assert result["training"]["step"] == 2
    assert 0 < result["training"]["bytes"] <= 64
    assert run(["info", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "step 2" in shown
    assert "trained in" in shown
    assert result["trained_dtype"] == "bfloat16"


def test_an_unknown_name_lists_the_presets(capsys):
    assert run(["info", "mambabyte-353"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'mambabyte-353m'" in error
    assert "mambabyte-tiny" in error


def test_a_folder_without_a_model_is_a_sentence(capsys, tmp_path):
    assert run(["info", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "folded"),
    [
        (["a"], "a"),
        (["a"] * 3, "a x 3"),
        (["a", "b"] * 2, "(a b) x 2"),
        (["a", "b", "a"], "a b a"),
        ([], ""),
    ],
)
def test_fold(pattern, folded):
    assert fold(pattern) == folded
