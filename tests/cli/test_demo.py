"""The demo: what it trains on and holds out, and that it runs to its closing table."""

import json

import pytest

from mambabyte.cli import demo
from mambabyte.cli.app import run


def test_held_out_files_are_not_trained_on() -> None:
    training, held_out = demo.library()
    assert len(held_out) == demo.HELD_OUT_FILES
    assert not set(training) & set(held_out)
    assert all(path.stat().st_size in demo.HELD_OUT_SIZES for path in held_out)
    assert sum(path.stat().st_size for path in training) > 5_000_000
    assert demo.library() == (training, held_out)


def test_it_trains_measures_and_writes(tmp_path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(demo, "PRESET", "mambabyte-tiny")
    monkeypatch.setattr(demo, "HELD_OUT_FILES", 1)
    monkeypatch.setattr(demo, "SAMPLE_BYTES", 20)
    assert run(["demo", "--out", str(tmp_path / "run"), "--minutes", "0.02", "--json"]) == 0
    output = capsys.readouterr().out
    assert "What happened, and what to try next" in output
    figures = json.loads(output.splitlines()[-1])
    assert 0 < figures["bits_per_byte"] < 9  # a step or two only
    assert 0 < figures["xz_bits_per_byte"] < 8
    assert (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("minutes", ["0", "-1", "soon"])
def test_minutes_must_be_a_time(minutes: str, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run(["demo", "--minutes", minutes]) == 2
    assert "minutes" in capsys.readouterr().err
