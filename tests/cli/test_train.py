import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mambabyte as mb
from mambabyte import config as configs
from mambabyte.checkpoints.run import newest, steps
from mambabyte.cli.app import run
from mambabyte.generation.text import visible
from tests.training.small import MODEL, corpus, curve

SMALL = [
    *("--batch", "4", "--context", "24", "--learning-rate", "3e-3", "--device", "cpu", "--precision", "float32"),
    *("--log-every", "1"),
]


@pytest.fixture
def setup(tmp_path: Path) -> list[str]:
    """A command line for a small model in a TOML file; the model is its [model] table."""
    file = tmp_path / "small.toml"
    layers = "\n".join(
        f"{key} = {json.dumps(value)}"
        for key, value in configs.to_dict(MODEL.layers["mamba"]).items()
        if value is not None
    )
    file.write_text(
        f"steps = 4\nclip = 1.0\n[model]\nd_model = {MODEL.d_model}\npattern = {json.dumps(MODEL.pattern)}\n"
        f"[model.layers.mamba]\n{layers}\n"
    )
    return ["train", "--config", str(file), "--data", corpus(tmp_path / "data"), "--out", str(tmp_path / "run"), *SMALL]


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_json_says_what_was_done(setup: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*setup, "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1, "progress goes to stderr"
    assert (result["steps"], result["finished"], result["out"]) == (4, True, str(tmp_path / "run"))
    assert result["bits_per_byte"] == curve(tmp_path / "run")[-1]["bits_per_byte"]
    assert {"bytes", "seconds", "checkpoint"} <= set(result)
    assert mb.load(tmp_path / "run").config == MODEL


def test_command_line_wins_over_the_file(setup: list[str], tmp_path: Path) -> None:
    assert run([*setup, "--steps", "2"]) == 0
    saved = json.loads((tmp_path / "run" / "train.json").read_text())
    assert (saved["steps"], saved["clip"], saved["batch"]) == (2, 1.0, 4)


def test_the_run_folder_alone_is_enough_to_go_on(
    setup: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*setup, "--steps", "2"]) == 0
    capsys.readouterr()
    assert run(["train", "--out", str(tmp_path / "run"), "--steps", "5", "--json"]) == 0
    assert last_json(capsys)["steps"] == 5
    assert run(["train", "--out", str(tmp_path / "run"), "--bytes", "100", "--json"]) == 0
    assert last_json(capsys)["steps"] == 5, "a new limit replaces the old ones"


def test_the_saved_config_trains_the_same_again(setup: list[str], tmp_path: Path) -> None:
    assert run(setup) == 0
    saved, again = tmp_path / "run" / "train.json", tmp_path / "again"
    assert run(["train", "--config", str(saved), "--out", str(again)]) == 0
    assert curve(again) == curve(tmp_path / "run")


def test_people_see_evaluations_and_escaped_samples(
    setup: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held.txt"
    held_out.write_bytes(b"state space \x1b[31m")
    options = ["--held-out", str(held_out), "--sample", "\tstate\udcff", "--evaluate-every", "2"]
    assert run([*setup, *options]) == 0
    out = capsys.readouterr().out
    assert out.count("bits_per_byte") == 2
    assert out.count("sample:\n\tstate\\udcff") == 2, "a text keeps its tabs"
    assert visible(out) == out
    assert "done at step 4" in out


def replaced(setup: list[str], option: str, *values: str) -> list[str]:
    at = setup.index(option)
    return [*setup[:at], option, *values, *setup[at + 2 :]]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (("--data", "{tmp}/absent"), 1, "absent: there is no such file"),
        (("--data", "{tmp}/empty"), 1, "no bytes here"),
        (("--config", "{tmp}/absent.toml"), 2, "absent.toml"),
        (("--config", "{tmp}/bad-key.toml"), 2, "did you mean 'learning_rate'"),
        (("--config", "{tmp}/bad-syntax.toml"), 2, "not a valid TOML file"),
        (("--device", "tpu"), 2, "device 'tpu'"),
        (("--batch", "0"), 2, "batch must be at least 1"),
        (("--batch", "many"), 2, "batch"),
        (("--out", "{tmp}/small.toml"), 1, "small.toml"),
        (("--precision", "int4"), 2, "precision"),
    ],
)
def test_mistakes_are_sentences(
    setup: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple, code: int, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad-key.toml").write_text("learning_rat = 1\n")
    (tmp_path / "bad-syntax.toml").write_text("= 1\n")
    option, value = change
    assert run(replaced(setup, option, value.format(tmp=tmp_path))) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.err


def test_unknown_preset_lists_the_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = corpus(tmp_path / "data")
    assert run(["train", "--preset", "mambabyte-tinny", "--data", data, "--out", str(tmp_path / "run")]) == 2
    assert "did you mean 'mambabyte-tiny'" in capsys.readouterr().err
    assert run(["train", "--data", data, "--out", str(tmp_path / "run")]) == 2
    assert "which model" in capsys.readouterr().err


def test_a_disk_that_fills_up_is_a_sentence_and_the_older_checkpoint_stays(
    setup: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*setup, "--steps", "2"]) == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert run([*setup, "--steps", "4"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "step-4.tmp" in capsys.readouterr().err
    assert newest(tmp_path / "run").name == "step-2"
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["step-2"]


def start(setup: list[str]) -> subprocess.Popen[str]:
    """A process that saves at every step; returns when its first checkpoint is there."""
    command = [sys.executable, "-m", "mambabyte", *setup, "--steps", "1000000", "--save-every", "1", "--keep", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = Path(setup[setup.index("--out") + 1])
    before = max(steps(folder), default=-1)
    while max(steps(folder), default=-1) <= before:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)
    return process


def test_killed_process_leaves_a_checkpoint_and_sigterm_ends_well(setup: list[str], tmp_path: Path) -> None:
    killed = start(setup)
    time.sleep(random.Random(0).uniform(0.0, 0.1))
    killed.kill()
    killed.communicate()
    assert mb.load(tmp_path / "run").config == MODEL
    assert max(steps(tmp_path / "run")) >= 1
    process = start(setup)
    assert run(setup) == 1, "the run folder is in use"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    last = max(record["step"] for record in curve(tmp_path / "run"))
    assert f"stopped at step {last:,}" in out
    assert [record["step"] for record in curve(tmp_path / "run")] == list(range(1, last + 1)), "no gap, no duplicate"
    assert list(steps(tmp_path / "run")) == [last]
