"""How long calls take: the median over rounds in which they take turns, so that a busy machine disturbs all of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]
WARM_UP = 2  # calls that compile, allocate and fill caches
FLUSH = 256 * 2**20  # bytes written to empty a GPU's second-level cache, four times what an H200 has
# How often they are written: about a millisecond on an H200, in which the host queues the call, so that the events
# enclose the GPU's work alone. Forward and backward of a small op keep the host busy for half of that.
FLUSHES = 12


@dataclasses.dataclass(frozen=True)
class Times:
    """Of one call: median milliseconds, the fastest, and the distance of the quartiles in percent of the median.

    `cpu_milliseconds` is the median over rounds of the time of all threads, None where the work is a GPU's.
    """

    milliseconds: float
    fastest: float
    spread_percent: float
    cpu_milliseconds: float | None = None


def compare(calls: Mapping[str, Call], device: torch.device, rounds: int) -> dict[str, Times]:
    """Time every call `rounds` times, at least twice, in turns; GPU work by events, other work by the clock."""
    assert rounds > 1, "a spread needs two rounds"
    return (on_gpu if device.type == "cuda" else on_host)(calls, rounds)


def on_host(calls: Mapping[str, Call], rounds: int) -> dict[str, Times]:
    """`compare` by the clock: for calls that return when their work is done."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            call()
            wall[name].append((time.perf_counter() - begin) * 1e3)
            cpu[name].append((time.process_time() - begin_cpu) * 1e3)
    return {
        name: dataclasses.replace(_times(wall[name]), cpu_milliseconds=statistics.median(cpu[name])) for name in calls
    }


def on_gpu(calls: Mapping[str, Call], rounds: int) -> dict[str, Times]:
    """`compare` by CUDA events on the current device; each call finds the second-level cache flushed.

    Everything is queued before anything is awaited, so that the host's work hides behind the GPU's, as in training.
    """
    flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    edges: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before, after = (_event() for _ in range(2))
            for _ in range(FLUSHES):
                flush.zero_()
            before.record()
            call()
            after.record()
            edges[name].append((before, after))
    torch.cuda.synchronize()
    return {name: _times([before.elapsed_time(after) for before, after in pairs]) for name, pairs in edges.items()}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _times(milliseconds: list[float]) -> Times:
    low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Times(median, min(milliseconds), 100 * (high - low) / median)
