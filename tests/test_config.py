"""Configs to dicts and back, and errors that name the key and what would be right."""

from pathlib import Path

import pytest

from mambabyte import config
from mambabyte.models import PRESETS, ByteLMConfig, preset


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str) -> None:
    assert config.from_dict(ByteLMConfig, config.to_dict(preset(name))) == preset(name)


def changed(**changes: object) -> dict[str, object]:
    return config.to_dict(preset("mambabyte-tiny")) | changes


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (changed(d_modle=8), "config: key 'd_modle' does not exist; did you mean 'd_model'? known: d_model, layers"),
        (changed(d_model="8"), "config.d_model: expected int, got '8'"),
        (changed(d_model=True), "config.d_model: expected int, got True"),
        (changed(norm={"kind": "batch"}), "config.norm.kind='batch' is not one of 'rms', 'layer'"),
        (changed(layers={"mamba": {"kind": "lstm"}}), "config.layers.mamba: kind='lstm' is not one of"),
        (changed(layers={"mamba": {"kind": "mamba", "d_stat": 1}}), "config.layers.mamba: key 'd_stat' does not exist"),
        (changed(pattern="mamba"), "config.pattern: expected a list, got 'mamba'"),
        ({"d_model": 8}, "config: key 'layers' is missing"),
        ([], "config: expected a table of keys, got []"),
    ],
)
def test_errors_are_sentences(data: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^config") as error:
        config.from_dict(ByteLMConfig, data)
    assert str(error.value).startswith(sentence)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("a = [")
    with pytest.raises(ValueError, match=r"bad\.toml: not a valid TOML file"):
        config.load_toml(bad)
    bad.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"bad\.toml: not a valid TOML file"):
        config.load_toml(bad)
    with pytest.raises(ValueError, match=r"none\.json: cannot be read: No such file"):
        config.load_json(tmp_path / "none.json")
    bad.write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object, got a list"):
        config.load_json(bad)
    bad.write_text("{" + " " * 2000)
    with pytest.raises(ValueError, match="larger than 1000 bytes"):
        config.load_json(bad, limit=1000)
