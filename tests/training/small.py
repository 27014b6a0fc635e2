"""A run small enough for a test: 15 thousand parameters, four rows of 24 bytes a step."""

from pathlib import Path
from typing import Any

import numpy as np

from mambabyte.models.presets import mambabyte
from mambabyte.training import Listener, TrainConfig
from mambabyte.training.records import Record, read_records

MODEL = mambabyte(16, 2)


def corpus(folder: Path, seed: int = 0) -> str:
    """A folder of documents of unequal length that a model can learn something about."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    words = [b"state ", b"space ", b"byte ", b"model\n", b"scan "]
    for i, length in enumerate((700, 31, 400, 1500)):
        text = b"".join(words[k] for k in rng.integers(0, len(words), length))
        (folder / f"{i}.txt").write_bytes(text[:length])
    return str(folder)


def config(tmp_path: Path, out: str = "run", **changes: Any) -> TrainConfig:
    """A config of a dozen steps in float32; the data are made on first use."""
    keys: dict[str, Any] = {
        "model": MODEL,
        "data": (corpus(tmp_path / "data"),),
        "out": str(tmp_path / out),
        "steps": 12,
        "batch": 4,
        "context": 24,
        "learning_rate": 3e-3,
        "device": "cpu",
        "precision": "float32",
        "log_every": 5,
    }
    return TrainConfig(**keys | changes)


def curve(run: Path | str) -> list[dict[str, Any]]:
    """The records of a run without what the clock says."""
    clock = {"seconds", "bytes_per_second"}
    return [{k: v for k, v in record.items() if k not in clock} for record in read_records(Path(run))]


class At(Listener):
    """Calls `action` when the record of some event and step is written."""

    def __init__(self, event: str, step: int, action: Any) -> None:
        self.wanted, self.action = (event, step), action

    def record(self, record: Record) -> None:
        if (record["event"], record["step"]) == self.wanted:
            self.action()
