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

    `error` is the largest deviation of ours from the reference, as a norm relative to that of the truth. `bytes` is how
    much text one call learns from or writes. `peak_gib` is the memory that a contestant took at its peak.
    `failed_peers` says of peers without times why they have none.
    """

    op: str
    device: torch.device
    shape: Mapping[str, int | str]
    dtype: str
    times: Mapping[str, Mapping[str, Times]]
    floor: Mapping[str, float]
    error: float
    bytes: int | None = None
    peak_gib: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failed_peers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `ratio` is ours over the floor, a peer's `ratio` its time over ours."""
        ours = self.times[OURS]
        found = {
            "op": self.op,
            "device": device_name(self.device),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "shape": dict(self.shape),
            "dtype": self.dtype,
            **self._plain(OURS),
            "floor": {k: _round(v) for k, v in self.floor.items()},
            "ratio": {k: _round(ours[k].milliseconds / v) for k, v in self.floor.items()},
            "peers": {name: self._peer(name) for name in self.times if name != OURS},
            "failed_peers": dict(self.failed_peers) or None,
            "error": float(f"{self.error:.2g}"),
            "peak_gib": self._peak(OURS),
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
            if self.bytes is not None:
                said += f"; {found['bytes_per_second'][direction]:,} bytes/s"
            rows[direction.replace("_", " + ")] = said
        for name, peer in found["peers"].items():
            slower = (f"{ms:.4g} ms ({peer['ratio'][d]:.3g} times ours)" for d, ms in peer["milliseconds"].items())
            rows[name] = ", ".join(slower)
        rows |= {name: f"no figures: {why}" for name, why in self.failed_peers.items()}
        if self.peak_gib:
            rows["peak memory"] = ", ".join(f"{name} {gib:.2f} GiB" for name, gib in self.peak_gib.items())
        return rows

    def _peer(self, name: str) -> dict[str, Any]:
        ours = self.times[OURS]
        ratio = {d: _round(times.milliseconds / ours[d].milliseconds) for d, times in self.times[name].items()}
        found = self._plain(name) | {"ratio": ratio}
        peak = self._peak(name)
        return found if peak is None else found | {"peak_gib": peak}

    def _plain(self, name: str) -> dict[str, Any]:
        times = self.times[name]
        found: dict[str, Any] = {
            "milliseconds": {direction: _round(t.milliseconds) for direction, t in times.items()},
            "fastest": {direction: _round(t.fastest) for direction, t in times.items()},
            "spread_percent": {direction: round(t.spread_percent, 1) for direction, t in times.items()},
        }
        if self.bytes is not None:
            found["bytes_per_second"] = {d: round(1e3 * self.bytes / t.milliseconds) for d, t in times.items()}
        cpu = {d: _round(t.cpu_milliseconds) for d, t in times.items() if t.cpu_milliseconds is not None}
        return found | ({"cpu_milliseconds": cpu} if cpu else {})

    def _peak(self, name: str) -> float | None:
        return _round(self.peak_gib[name]) if name in self.peak_gib else None


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


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
