"""A drafter from one command: trained, described, evaluated, used, and refused where bytes are wanted."""

import json
from pathlib import Path

import pytest

import mambabyte as mb
from mambabyte.checkpoints import save_model
from mambabyte.cli.app import run
from tests.generation.conftest import tiny_model
from tests.training.small import corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte model and the run of a drafter."""
    folder = tmp_path_factory.mktemp("drafter")
    save_model(tiny_model(), folder / "model")
    data = corpus(folder / "data")
    options = ["--batch", "2", "--context", "80", "--steps", "3", "--device", "cpu", "--held-out", data]
    command = ["train", "--preset", "mambabyte-tiny", "--tokenizer", "280", "--data", data]
    assert run([*command, "--out", str(folder / "run"), *options]) == 0
    return folder


def said(capfd: pytest.CaptureFixture[str], *command: object) -> dict:
    capfd.readouterr()
    assert run([*map(str, command), "--json"]) == 0
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_the_run_alone_is_enough_to_go_on(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = said(capfd, "train", "--out", folder / "run", "--steps", "4")
    assert (result["steps"], result["finished"]) == (4, True)
    drafter = mb.load_any(folder / "run")
    assert isinstance(drafter, mb.SubwordLM)
    assert len(drafter.subwords) == 280


def test_it_drafts_and_changes_no_byte(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = (folder / "model", "--prompt", "state space ", "--max-bytes", "30", "--seed", "5")
    plain = said(capfd, "generate", *options)
    for drafter in (folder / "run", next((folder / "run").glob("step-*"))):
        drafted = said(capfd, "generate", *options, "--drafter", drafter)
        assert drafted["bytes"] == plain["bytes"]
        assert drafted["decoding"]["drafted"] > 0


def test_info_says_what_it_is(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd, "info", folder / "run")["reads"] == "subwords"
    assert said(capfd, "info", folder / "model")["reads"] == "bytes"
    assert run(["info", str(folder / "run")]) == 0
    shown = capfd.readouterr().out
    assert "280 subwords" in shown
    assert "FLOPs per subword" in shown


def test_it_is_evaluated_in_bits_per_byte(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = said(capfd, "evaluate", folder / "run", "--data", folder / "data")
    assert result["bytes"] == 700 + 31 + 400 + 1500
    assert 0 < result["bits_per_byte"] < 8


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["generate", "{run}", "--prompt", "x"], 1, "drafts for a model"),
        (["surprisal", "{run}", "{data}/0.txt"], 1, "drafts for a model"),
        (["convert", "{run}", "{run}/other"], 2, "no other layout"),
        (["evaluate", "{run}", "--data", "{data}", "--mode", "window"], 1, "mode stream"),
        (["evaluate", "{run}", "--tasks", "lambada_openai"], 2, "--tasks are for models of bytes"),
        (["train", "--out", "{run}", "--sample", "state"], 2, "--sample needs a model of bytes"),
        (["train", "--out", "{run}", "--tokenizer", "270"], 1, "tokenizer is 270, was 280"),
        (["train", "--preset", "mambabyte-tiny", "--data", "{data}", "--tokenizer", "9"], 2, "at least 256"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_it_cannot_do_is_a_sentence(
    folder: Path, capfd: pytest.CaptureFixture[str], command: list[str], code: int, words: str
) -> None:
    assert run([part.format(run=folder / "run", data=folder / "data") for part in command]) == code
    error = capfd.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_run_of_bytes_does_not_go_on_with_subwords(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--out", str(folder / "bytes"), "--device", "cpu"]
    small = ["--data", str(folder / "data"), "--batch", "2", "--context", "80", "--steps", "1"]
    assert run(["train", "--preset", "mambabyte-tiny", *small, *options]) == 0
    assert run(["train", "--tokenizer", "280", *options]) == 1
    assert "tokenizer is 280, was not given; choose another --out" in capfd.readouterr().err


def test_the_vocabulary_of_another_model_is_a_sentence(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subwords = mb.Subwords.learn([b"the cat sat"], 260)
    save_model(mb.SubwordLM(tiny_model(vocab_size=260), subwords), folder / "mixed")
    (folder / "mixed" / "SHA256SUMS").unlink()
    mb.Subwords.learn([b"the cat sat on the mat"] * 9, 270).write(folder / "mixed" / "subwords.json")
    assert run(["generate", str(folder / "model"), "--prompt", "x", "--drafter", str(folder / "mixed")]) == 1
    error = capfd.readouterr().err
    assert "mixed: subwords.json is of another model: the model knows 260 ids" in error
    assert "Traceback" not in error


def test_a_byte_model_saved_over_it_is_a_byte_model(tmp_path: Path) -> None:
    subwords = mb.Subwords.learn([b"the cat sat"], 260)
    save_model(mb.SubwordLM(tiny_model(vocab_size=260), subwords), tmp_path / "m")
    assert mb.load_any(tmp_path / "m").subwords.pieces == subwords.pieces
    with pytest.raises(ValueError, match="drafts for a model"):
        mb.load(tmp_path / "m")
    save_model(tiny_model(), tmp_path / "m")
    assert mb.load(tmp_path / "m").config.vocab_size == 256
    with pytest.raises(ValueError, match=r"260 ids, but there are 26[1-9] subwords"):
        mb.SubwordLM(tiny_model(vocab_size=260), mb.Subwords.learn([b"the cat sat on the mat"] * 9, 270))
