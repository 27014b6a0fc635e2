"""`mambabyte convert`: every layout from every other, without a bit changed, and refusals as sentences."""

import json
from pathlib import Path

import pytest
import torch

import mambabyte as mb
from mambabyte.cli.app import run
from mambabyte.layers import MambaConfig, NormConfig

LAYOUTS = ["hf", "mambabyte", "mamba-ssm"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = mb.ByteLMConfig(d_model=8, layers={"mamba": MambaConfig(d_state=2)}, pattern=("mamba",) * 2)
    torch.manual_seed(0)
    model = mb.ByteLM(config)
    model.trained_dtype = torch.bfloat16
    model.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_no_bit_changes_between_layouts(
    folder: Path, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    middle, end = folder.parent / "middle", folder.parent / "end"
    assert run(["convert", str(folder), str(middle), "--format", first]) == 0
    assert run(["convert", str(middle), str(end), "--format", second, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    a, b = mb.load(folder), mb.load(end)
    assert a.config == b.config
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert result["parameters"] == sum(p.numel() for p in a.parameters())
    assert (result["dtype"], result["notes"]) == ("float32", [])
    assert (end / "pytorch_model.bin").exists() == (second == "mamba-ssm")
    assert b.trained_dtype == (None if "mamba-ssm" in (first, second) else torch.bfloat16)


def test_each_wrong_key_is_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published, end = folder.parent / "published", folder.parent / "end"
    mb.load(folder).save(published, layout="mamba-ssm")
    config = json.loads((published / "config.json").read_text()) | {"n_layer": 53, "rms_norm": False}
    (published / "config.json").write_text(json.dumps(config))
    (published / "SHA256SUMS").unlink()
    assert run(["convert", str(published), str(end), "--json"]) == 0
    output = capsys.readouterr()
    assert output.err.count("the weights decide") == 2
    assert len(json.loads(output.out.splitlines()[-1])["notes"]) == 2


def test_a_folder_in_use_is_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(folder), str(folder)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_layout_that_cannot_hold_the_model_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    norm = NormConfig(kind="layer", bias=True)
    mb.ByteLM(mb.ByteLMConfig(d_model=8, layers={"m": MambaConfig()}, pattern=("m",), norm=norm)).save(tmp_path / "a")
    assert run(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "hf"]) == 1
    assert "the only norm of Hugging Face's Mamba" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [(["nothing", "b"], 1, "no such folder"), (["hf://x", "b"], 1, "Hub"), (["a", "b", "--format", "gguf"], 2, "gguf")],
)
def test_a_wrong_argument_is_a_sentence(
    arguments: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", *arguments]) == code
    error = capsys.readouterr().err
    assert word in error
    assert "Traceback" not in error
