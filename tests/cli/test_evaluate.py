import importlib.util
import json
import math
from pathlib import Path

import pytest

from mambabyte.checkpoints import save_model
from mambabyte.cli.app import run
from mambabyte.evaluation import evaluate
from tests.evaluation.examples import small_model

FILES = {"a.txt": b"some words in a file\n" * 9, "b [bold]\x1b[31m.bin": bytes(range(256)), "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name, content in FILES.items():
        (data / name).write_bytes(content)
    save_model(small_model().float(), tmp_path / "model")
    return tmp_path


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--mode", "window", "--context", "64"], {"mode": "window", "context": 64}),
        (["--mode", "sliding", "--context", "64", "--stride", "16"], {"mode": "sliding", "context": 64, "stride": 16}),
        (["--batch", "1", "--device", "cpu"], {}),
    ],
)
def test_json_says_what_the_library_says(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], options: dict
) -> None:
    assert run(["evaluate", str(folder / "model"), "--data", str(folder / "data"), *arguments, "--json"]) == 0
    result = last_json(capsys)
    expected = evaluate(small_model().float(), folder / "data", **options)
    assert result["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert result["bytes"] == expected.bytes
    assert result["xz_bits_per_byte"] == expected.xz_bits_per_byte
    assert [file["name"] for file in result["files"]] == [file.name for file in expected.files]
    assert (result["mode"], result["context"], result["stride"]) == (expected.mode, expected.context, expected.stride)


def test_several_paths_follow_one_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(folder / "data" / name) for name in FILES]
    assert run(["evaluate", str(folder / "model"), "--data", *paths, "--no-xz", "--json"]) == 0
    result = last_json(capsys)
    assert len(result["files"]) == 2
    assert result["xz_bits_per_byte"] is None


def test_people_get_plain_lines_without_control_characters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(folder / "model"), "--data", str(folder / "data"), "--no-xz"]) == 0
    printed = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert r"b [bold]\x1b[31m.bin" in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["total", "stream:"]
    assert printed.endswith("1 empty files left out\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--mode", "windows"], 2, "windows"),
        (["--mode", "window", "--stride", "4"], 2, "stride 4 needs the mode sliding"),
        (["--mode", "sliding", "--context", "4", "--stride", "5"], 2, "stride must lie between 1 and"),
        (["--context", "0"], 2, "context must be at least 1"),
        (["--batch", "0"], 2, "Must be >= 1"),
        (["--device", "gpu"], 2, "--device 'gpu'"),
        (["--device", "cuda:99"], 2, "CUDA device"),
        (["--data", "no/such/file"], 1, "no/such/file"),
    ],
)
def test_errors_are_sentences(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert run(["evaluate", str(folder / "model"), "--data", str(folder / "data"), *arguments]) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_model_that_is_not_there_and_data_without_a_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(folder / "nothing"), "--data", str(folder / "data")]) == 1
    assert "nothing" in capsys.readouterr().err
    assert run(["evaluate", str(folder / "model"), "--data", str(folder / "data" / "empty")]) == 1
    assert "empty" in capsys.readouterr().err


def test_a_damaged_model_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model().float()
    model.head.weight.data[7] = math.nan
    save_model(model, folder / "damaged")
    assert run(["evaluate", str(folder / "damaged"), "--data", str(folder / "data")]) == 1
    assert "no finite number of bits" in capsys.readouterr().err


def test_something_to_evaluate_on_is_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(folder / "model")]) == 2
    assert "give --data PATH... or --tasks NAME" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_tasks_without_lm_eval_say_what_to_install(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(folder / "model"), "--tasks", "piqa,arc_easy"]) == 1
    assert "pip install 'mambabyte-lm[eval]'" in capsys.readouterr().err
