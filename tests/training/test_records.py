import json
from pathlib import Path

import pytest

from mambabyte.training.records import METRICS, JsonLines, read_records

LINES = [{"event": "train", "step": step, "text": "tschüß\n"} for step in (5, 10, 10, 15)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    sink = JsonLines(tmp_path, 0)
    for line in LINES:
        sink.write(line)
    sink.close()
    return tmp_path


def test_one_object_a_line(run: Path) -> None:
    assert [json.loads(line) for line in (run / METRICS).read_text().splitlines()] == LINES
    assert read_records(run) == LINES


@pytest.mark.parametrize(("step", "kept"), [(20, 4), (15, 4), (14, 3), (10, 3), (9, 1), (0, 0)])
def test_reopening_drops_what_lies_beyond_the_step(run: Path, step: int, kept: int) -> None:
    sink = JsonLines(run, step)
    sink.write({"event": "train", "step": step + 1})
    sink.close()
    assert read_records(run) == [*LINES[:kept], {"event": "train", "step": step + 1}]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_cut_short_by_a_kill_is_dropped(run: Path, cut: int) -> None:
    whole = (run / METRICS).read_bytes()
    (run / METRICS).write_bytes(whole[:-cut])
    JsonLines(run, 100).close()
    assert read_records(run) == LINES[: 4 if cut == 1 else 3]
    assert (run / METRICS).read_bytes().endswith(b"\n")


def test_no_file_is_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
