"""train.json is for people: damage to it cannot keep a run with whole checkpoints from going on."""

import json
from pathlib import Path

import pytest

from mambabyte.cli.app import run


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_damaged_train_json_does_not_matter(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "text", tmp_path / "run"
    data.write_bytes(bytes(range(256)) * 20)
    command = ["train", "--out", str(out), "--device", "cpu", "--precision", "float32", "--json"]
    sizes = ["--preset", "mambabyte-tiny", "--data", str(data), "--batch", "2", "--context", "16"]
    assert run([*command, *sizes, "--steps", "1"]) == 0
    config = out / "train.json"
    if damage == "truncated":
        config.write_bytes(config.read_bytes()[:10])
    elif damage == "changed":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"seed": 1}))
    else:
        config.unlink()
    assert run([*command, "--steps", "2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 2
    assert json.loads(config.read_text())["seed"] == 0
