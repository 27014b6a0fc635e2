import json
from pathlib import Path

import numpy as np
import pytest

from mambabyte.checkpoints import save_model
from mambabyte.cli.app import run
from mambabyte.evaluation import evaluate
from tests.evaluation.examples import small_model

DATA = b"text, \x1b[31m control, \xff\xfe and\nmore lines\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    save_model(small_model().float(), tmp_path / "model")
    return tmp_path


def surprisal(folder: Path, *arguments: str, file: str = "file") -> int:
    return run(["surprisal", str(folder / "model"), str(folder / file), *arguments])


def test_json_holds_the_bits_that_evaluate_adds_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert surprisal(folder, "--mode", "window", "--context", "9", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = evaluate(small_model().float(), folder / "file", mode="window", context=9, xz=False)
    assert len(result["bits"]) == result["bytes"] == len(DATA)
    assert sum(result["bits"]) == pytest.approx(expected.bits, rel=1e-5)


def test_lines_without_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert surprisal(folder) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [int(offset) for offset, _, _ in lines] == list(range(len(DATA)))
    assert bytes.fromhex("".join(byte for _, byte, _ in lines)) == DATA
    assert all(float(bits) > 0 for _, _, bits in lines)


def test_a_heat_map_on_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert surprisal(folder, "--show", "30") == 0
    printed = capsys.readouterr().out
    assert "\x1b[38;2;" in printed
    assert "\x1b[31m" not in printed
    assert f"{len(DATA) - 30} more bytes are not shown" in printed


def test_files_are_written_whole_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert surprisal(folder, "--npz", str(folder / "out.npz"), "--html", str(folder / "out.html")) == 0
    assert "wrote" in capsys.readouterr().out
    with np.load(folder / "out.npz") as archive:
        assert archive["data"].tobytes() == DATA
    assert (folder / "out.html").read_text(encoding="utf-8").endswith("</html>\n")
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--stride", "4"], 2, "stride 4 needs the mode sliding"),
        (["--show", "-1"], 2, "Must be >= 0"),
        (["--html", "no/such/folder/out.html"], 1, "no/such/folder/out.html"),
    ],
)
def test_errors_are_sentences(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert surprisal(folder, *arguments) == code
    assert words in capsys.readouterr().err


def test_a_folder_and_an_empty_file_are_sentences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert surprisal(folder, file="model") == 1
    assert "model: Is a directory" in capsys.readouterr().err
    assert surprisal(folder, file="absent") == 1
    assert "absent: No such file" in capsys.readouterr().err
    assert surprisal(folder, "--html", str(folder / "nowhere" / "page.html")) == 1
    assert "nowhere/page.html: No such file" in capsys.readouterr().err
    (folder / "empty").touch()
    assert surprisal(folder, file="empty") == 1
    assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize("outputs", [("--npz", "file"), ("--html", "file"), ("--npz", "out", "--html", "out")])
def test_nothing_that_is_read_or_written_is_overwritten(
    outputs: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [part if part.startswith("--") else str(folder / part) for part in outputs]
    assert surprisal(folder, *named) == 2
    assert "three different files" in capsys.readouterr().err
    assert (folder / "file").read_bytes() == DATA
    assert not (folder / "out").exists()
