"""What a person sees of a run: one live line on a terminal, plain lines elsewhere, nothing unless asked."""

import dataclasses
import sys
import time
from typing import TextIO

from mambabyte.training.records import Record

PLAIN_SECONDS = 5.0  # between two plain lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Now:
    """Where a run is; `bits_per_byte` is the mean of about the last log interval."""

    step: int
    bytes: int
    seconds: float
    progress: float
    bits_per_byte: float
    learning_rate: float
    bytes_per_second: float


class Listener:
    """Hears of a run and ignores it; subclass and override what you want to show."""

    def message(self, text: str) -> None:
        """A sentence for people."""

    def step(self, now: Now) -> None:
        """Steps have been made; called a few times a second, on a GPU once in two."""

    def record(self, record: Record) -> None:
        """A line of metrics.jsonl has been written."""

    def close(self) -> None:
        """The run is over."""


class PlainLines(Listener):
    """One line every few seconds, for logs and pipes."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._last = 0.0

    def message(self, text: str) -> None:
        """Print it."""
        print(text, file=self._file, flush=True)

    def record(self, record: Record) -> None:
        """Print evaluations and samples, and training as often as a log is worth reading."""
        if record["event"] == "train":
            if time.monotonic() - self._last < PLAIN_SECONDS and record["progress"] < 1:
                return
            self._last = time.monotonic()
        self.message(describe(record))


class LiveLine(Listener):
    """A bar that keeps moving, with evaluations, samples and messages as lines above it."""

    def __init__(self, file: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("[bold]{task.fields[bits]}[/] bits per byte"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=Console(file=file or sys.stdout),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("train", total=1.0, bits="-.---", detail="")
        self._bar.start()

    def message(self, text: str) -> None:
        """Print it above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def step(self, now: Now) -> None:
        """Move the bar."""
        left = now.seconds * (1 / now.progress - 1) if now.progress > 0 else 0.0
        detail = f"step {now.step:,}  {now.bytes_per_second / 1e3:,.0f} kB/s  {_clock(left)} left"
        self._bar.update(self._task, completed=now.progress, bits=f"{now.bits_per_byte:.3f}", detail=detail)
        self._bar.refresh()

    def record(self, record: Record) -> None:
        """Evaluations and samples stay on the screen; training shows in the bar."""
        if record["event"] != "train":
            self.message(describe(record))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


def display(file: TextIO | None = None) -> Listener:
    """A live line if `file` (stdout by default) is a terminal, else plain lines."""
    return LiveLine(file) if (file or sys.stdout).isatty() else PlainLines(file)


def describe(record: Record) -> str:
    """A record as one line for people."""
    if record["event"] == "train":
        return (
            f"step {record['step']:>7,}  {record['bits_per_byte']:.4f} bits per byte  "
            f"{record['bytes_per_second'] / 1e3:,.0f} kB/s  {_clock(record['seconds'])}  {record['progress']:.0%}"
        )
    if record["event"] == "sample":
        return f"step {record['step']:>7,}  sample:\n{record['text']}"
    figures = (
        f"{name} {value:.4f}" for name, value in record.items() if isinstance(value, float) and name != "seconds"
    )
    return f"step {record['step']:>7,}  evaluation: {'  '.join(figures)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
