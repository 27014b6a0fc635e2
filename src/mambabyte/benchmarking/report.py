"""What a benchmark found, as one value: ours, the floor, the peers, and where and on what it ran."""

import dataclasses
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mambabyte.benchmarking.timing import Times

OURS = "mambabyte"
DIGITS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """`times` by contestant (ours is "mambabyte") and direction; `floor` milliseconds by direction.

    `error` is the largest deviation of ours from the reference, as a norm relative to that of the truth.
    """

    op: str
    device: torch.device
    shape: Mapping[str, int | str]
    dtype: str
    times: Mapping[str, Mapping[str, Times]]
    floor: Mapping[str, float]
    error: float
    peak_gib: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `ratio` is ours over the floor, a peer's `ratio` its time over ours."""
        ours = self.times[OURS]
        found = {
            "op": self.op,
            "device": device_name(self.device),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "shape": dict(self.shape),
            "dtype": self.dtype,
            **_plain(ours),
            "floor": {k: _round(v) for k, v in self.floor.items()},
            "ratio": {k: _round(ours[k].milliseconds / v) for k, v in self.floor.items()},
            "peers": {name: _peer(times, ours) for name, times in self.times.items() if name != OURS},
            "error": float(f"{self.error:.2g}"),
            "peak_gib": None if self.peak_gib is None else _round(self.peak_gib),
            "torch": torch.__version__,
            "commit": commit(),
        }
        return {key: value for key, value in found.items() if value is not None}

    def rows(self) -> dict[str, str]:
        """For people: a line for each direction and contestant."""
        found = self.to_dict()
        ours = self.times[OURS]
        rows = {"device": found["device"], "shape": ", ".join(f"{k} {v}" for k, v in self.shape.items())}
        rows |= {"dtype": self.dtype, "error": f"{self.error:.1e} from the reference"}
        for direction, times in ours.items():
            said = f"{times.milliseconds:.4g} ms, quartiles {times.spread_percent:.0f}% apart"
            if direction in self.floor:
                said += f"; {found['ratio'][direction]:.3g} times the floor of {self.floor[direction]:.4g} ms"
            rows[direction.replace("_", " + ")] = said
        for name, peer in found["peers"].items():
            slower = (f"{ms:.4g} ms ({peer['ratio'][d]:.3g} times ours)" for d, ms in peer["milliseconds"].items())
            rows[name] = ", ".join(slower)
        if self.peak_gib is not None:
            rows["peak memory"] = f"{self.peak_gib:.2f} GiB"
        return rows


def device_name(device: torch.device) -> str:
    """What the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {platform.processor() or platform.machine()}"


def commit() -> str | None:
    """The commit that this package is checked out at, "-dirty" if files differ; None if it is installed otherwise."""
    folder = Path(__file__).parent
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return _git(folder, "describe", "--always", "--dirty", "--exclude=*")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _plain(times: Mapping[str, Times]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "milliseconds": {direction: _round(t.milliseconds) for direction, t in times.items()},
        "fastest": {direction: _round(t.fastest) for direction, t in times.items()},
        "spread_percent": {direction: round(t.spread_percent, 1) for direction, t in times.items()},
    }
    cpu = {d: _round(t.cpu_milliseconds) for d, t in times.items() if t.cpu_milliseconds is not None}
    return found | ({"cpu_milliseconds": cpu} if cpu else {})


def _peer(times: Mapping[str, Times], ours: Mapping[str, Times]) -> dict[str, Any]:
    return _plain(times) | {"ratio": {d: _round(t.milliseconds / ours[d].milliseconds) for d, t in times.items()}}


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
