import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mambabyte.cli.app import run


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "plain [red]\x1b[31m.txt").write_bytes(b"plain text")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"packed text"))
    (tmp_path / "empty").touch()
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n{"no": 1}\n')
    return tmp_path


def test_json_says_what_info_says(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [*map(str, sorted(data.glob("p*"))), str(data / "empty"), f"{data}/rows.jsonl#text"]
    assert run(["prepare", *sources, "--out", str(data / "set"), "--json"]) == 0
    result = last_json(capsys)
    assert (result["bytes"], result["documents"], result["empty"], result["broken"]) == (26, 3, 1, 1)
    assert "rows.jsonl, line 2" in result["examples"][0]
    assert result["verified"]
    assert run(["info", str(data / "set"), "--json"]) == 0
    assert last_json(capsys) == result


def test_people_get_a_table_without_control_characters(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", *map(str, data.glob("plain*")), "--out", str(data / "set")]) == 0
    first = capsys.readouterr().out
    assert run(["info", str(data / "set")]) == 0
    for printed in (first, capsys.readouterr().out):
        assert "bytes" in printed
        assert "[red]" in printed.replace("\n", "")
        assert "\x1b" not in printed


@pytest.mark.parametrize(("empty", "words"), [(1, "1 empty document "), (2, "2 empty documents ")])
def test_what_is_left_out_is_counted_in_good_english(
    data: Path, capsys: pytest.CaptureFixture[str], empty: int, words: str
) -> None:
    sources = [str(data / "empty"), str(data / "packed.gz")]
    if empty == 2:
        (data / "void").touch()
        sources.append(str(data / "void"))
    assert run(["prepare", *sources, "--out", str(data / "set")]) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["manifest.json", "shard-00000.bin"])
def test_info_takes_a_set_that_lost_a_file_for_no_model(
    data: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    assert run(["prepare", str(data / "packed.gz"), "--out", str(data / "set")]) == 0
    (data / "set" / lost).unlink()
    assert run(["info", str(data / "set")]) == 1
    said = capsys.readouterr().err
    assert lost in said
    assert "prepared set" in said


def test_standard_input_is_read_through(data: Path) -> None:
    command = [sys.executable, "-m", "mambabyte", "prepare", "-", "--out", str(data / "set"), "--json"]
    result = subprocess.run(command, input=gzip.compress(b"from a pipe"), capture_output=True, check=True, timeout=60)
    assert json.loads(result.stdout)["bytes"] == len(b"from a pipe")
    assert (data / "set/shard-00000.bin").read_bytes() == b"from a pipe"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["prepare", "--out", "OUT"], 2, "name at least one source"),
        (["prepare", "DATA/packed.gz"], 2, "out"),
        (["prepare", "--stric", "--out", "OUT"], 2, "--stric"),
        (["prepare", "DATA/nothing", "--out", "OUT"], 1, "nothing: there is no such file"),
        (["prepare", "DATA/rows.jsonl#text", "--out", "OUT", "--strict"], 1, "rows.jsonl, line 2: has no text under"),
        (["prepare", "DATA/packed.gz", "--raw", "--column", "text", "--out", "OUT"], 1, "leave out one of the two"),
        (["prepare", "DATA/packed.gz:2", "--out", "OUT"], 1, "weights belong to training"),
        (["prepare", "hf://no/such/folder", "--out", "OUT"], 1, "name the column"),
        (["info", "OUT"], 2, "OUT"),
    ],
)
def test_mistakes_are_sentences(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    places = {"OUT": str(data / "out"), "DATA": str(data)}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
        words = words.replace(name, place)
    assert run(arguments) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
