import io

import pytest

from mambabyte.training.progress import LiveLine, Now, PlainLines, describe, display

NOW = Now(
    step=1234, bytes=5_000_000, seconds=65.0, progress=0.5, bits_per_byte=2.5, learning_rate=1e-3, bytes_per_second=8e4
)
TRAIN = {
    "event": "train",
    "step": 1234,
    "bits_per_byte": 2.5,
    "bytes_per_second": 80_000,
    "seconds": 3700.0,
    "progress": 0.5,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminals_get_a_live_line_and_files_plain_lines() -> None:
    assert isinstance(display(io.StringIO()), PlainLines)
    live = display(Terminal())
    assert isinstance(live, LiveLine)
    live.close()


def test_live_line_shows_bits_per_byte_and_the_time_left() -> None:
    screen = Terminal()
    live = LiveLine(screen)
    live.step(NOW)
    live.record(TRAIN)
    live.record({"event": "evaluation", "step": 1234, "held_out": 2.25})
    live.message("[bold]not markup[/]")
    live.close()
    shown = screen.getvalue()
    assert "2.500" in shown
    assert "1:05 left" in shown
    assert "held_out 2.2500" in shown
    assert "[bold]not markup[/]" in shown


def test_plain_lines_come_seldom_but_the_last_one_always(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 101.0, 106.0, 106.0, 107.0, 107.0])
    monkeypatch.setattr("mambabyte.training.progress.time.monotonic", lambda: next(clock))
    file = io.StringIO()
    plain = PlainLines(file)
    for step, progress in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 1.0)):
        plain.record(TRAIN | {"step": step, "progress": progress})
    assert [line.split()[1] for line in file.getvalue().splitlines()] == ["1", "3", "4"]


def test_every_kind_of_record_has_its_line() -> None:
    assert describe(TRAIN).split() == ["step", "1,234", "2.5000", "bits", "per", "byte", "80", "kB/s", "1:01:40", "50%"]
    assert describe({"event": "evaluation", "step": 3, "seconds": 1.5, "a": 0.5, "b": 2.0}).endswith(
        "a 0.5000  b 2.0000"
    )
    assert describe({"event": "sample", "step": 3, "text": "def\nx"}).endswith("sample:\ndef\nx")
