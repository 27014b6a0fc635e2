"""What a run writes down: metrics.jsonl, one JSON object a line, and event files for TensorBoard when asked."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mambabyte.checkpoints.publish import write_text

METRICS = "metrics.jsonl"
Record = Mapping[str, Any]  # always with "event" ("train", "evaluation" or "sample") and "step"


class Sink(Protocol):
    """Takes the records of a run, in order of step."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def flush(self) -> None:
        """Put what was taken onto the disk."""
        ...

    def close(self) -> None:
        """No more records come."""
        ...


class JsonLines:
    """RUN/metrics.jsonl, append-only. Opened at step S it first drops what a dead process wrote beyond S."""

    def __init__(self, run: Path, step: int) -> None:
        path = run / METRICS
        _truncate(path, step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """One line; it reaches the operating system at once."""
        self._file.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Force the lines onto the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files in RUN/tensorboard: every number of a record under "event/name", samples as text.

    Raises ValueError if the tensorboard package is not installed.
    """

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as missing:
            raise ValueError(
                f"--tensorboard needs the module {missing.name}: pip install 'mambabyte-lm[track]'"
            ) from None
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """One point a number."""
        for name, value in record.items():
            if name in ("event", "step"):
                continue
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(f"{record['event']}/{name}", value, record["step"])

    def flush(self) -> None:
        """Write what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def read_records(run: Path) -> list[dict[str, Any]]:
    """Every record of a run so far; a line that was cut short ends the list."""
    path = run / METRICS
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records


def _truncate(path: Path, step: int) -> None:
    if path.exists():
        kept = [record for record in read_records(path.parent) if record["step"] <= step]
        write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
