"""The selective scan on a CPU, ours beside Hugging Face's, mambapy's and a plain torch loop: same inputs, one run.

    python benchmarks/scan_cpu.py [--threads 2] [--rounds 3] [--only ours,mambapy] [--json]

Every contestant runs in a process of its own, so that its peak memory is its own; contestants take turns so that a busy
machine disturbs all of them; the fastest of all calls counts (CPU time, of all threads together, is disturbed less).
float32; dt is given after softplus, without D and gate, which is the scan that all of them have. Before anything is
timed, y and all gradients are compared with a float64 loop, and a contestant that is wrong stops the run.

Hugging Face's loop keeps a (batch, channels, length, states) tensor and its backward fills one with zeros for every
position, time quadratic in length: forward+backward is measured at length 256 and given per element, which flatters it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SHAPES = ((1, 4096, 512, 16), (8, 1024, 768, 16))
CONTESTANTS = ("ours", "mambapy", "huggingface", "torch loop")
OTHERS = {"mambapy": "MAMBAPY", "huggingface": "TRANSFORMERS"}
QUADRATIC_LENGTH = 256
TOLERANCE = 1e-4
SECONDS = 1.0  # what one contestant may spend on one measurement in one round, after the first call


def inputs(shape: tuple[int, ...]) -> dict[str, Any]:
    """x, dt, A, B, C as in a trained layer: dt from 0.01 to 0.1, A about -1..-N."""
    import torch

    from mambabyte.benchmarking import scan

    return scan.plain(scan.inputs(*shape, device=torch.device("cpu"), dtype=torch.float32))


def scan(contestant: str) -> Any:
    """The contestant as a `Contestant` over x, dt, A, B, C."""
    import torch

    from mambabyte.benchmarking import peers
    from mambabyte.benchmarking.operators import Contestant
    from mambabyte.ops import selective_scan

    if contestant in OTHERS:
        theirs = peers.scans(torch.device("cpu"))[getattr(peers, OTHERS[contestant])]
        run = functools.partial(theirs.run, dt_softplus=False)
        return dataclasses.replace(theirs, run=run, backward=True)
    backend = "cpu" if contestant == "ours" else "reference"
    return Contestant(lambda **case: selective_scan(**case, dt_softplus=False, backend=backend)[0])


def wrong(contestant: str) -> str | None:
    """What deviates from a float64 loop on a smaller shape, or None."""
    from mambabyte.benchmarking.operators import deviation

    for name, error in deviation(scan(contestant), scan("torch loop"), inputs((2, 200, 48, 16))).items():
        if not error < TOLERANCE:
            return f"{name} of {contestant} deviates by {error:.1e}"
    return None


def fastest(call: Callable[[], object]) -> dict[str, float]:
    """Least seconds, and least seconds of CPU time on all threads, of a call, after one that is not counted."""
    call()
    end, wall, cpu = time.perf_counter() + SECONDS, float("inf"), float("inf")
    while wall == float("inf") or time.perf_counter() < end:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        call()
        wall, cpu = min(wall, time.perf_counter() - begin), min(cpu, time.process_time() - begin_cpu)
    return {"seconds": wall, "cpu_seconds": cpu}


def measure(contestant: str, shape: tuple[int, ...], direction: str, threads: int) -> dict[str, float]:
    """Seconds of the fastest call and the memory it takes beyond its inputs, in this process."""
    import torch

    torch.set_num_threads(threads)
    contender, case = scan(contestant), inputs(shape)
    run, leaves = contender.run, contender.leaves(case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if direction == "forward":
        with torch.no_grad():
            times = fastest(lambda: run(**leaves))
    else:
        dy = torch.randn(shape[:3])
        times = fastest(lambda: torch.autograd.grad(run(**leaves), leaves.values(), dy))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**times, "extra_bytes": max(0, peak - before) * 1024}


def compete(contestants: list[str], threads: int, rounds: int) -> list[dict[str, Any]]:
    """One result for each shape, direction and contestant: the best of all rounds."""
    results = []
    for shape in SHAPES:
        for direction in ("forward", "forward+backward"):
            best: dict[str, dict[str, Any]] = {}
            for _ in range(rounds):
                for name in contestants:
                    size = shape
                    if name == "huggingface" and direction != "forward":
                        size = (shape[0], QUADRATIC_LENGTH, *shape[2:])
                    arguments = json.dumps([name, size, direction, threads])
                    child = [sys.executable, __file__, "--child", arguments]
                    found = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
                    found |= {"contestant": name, "shape": size, "direction": direction, "threads": threads}
                    print(f"{name} {direction} {size}: {found['seconds'] * 1e3:.1f} ms", file=sys.stderr)
                    best[name] = min(best.get(name, found), found, key=lambda r: r["seconds"])
            for result in best.values():
                batch, length, channels, states = result["shape"]
                result["ns_per_element"] = result["seconds"] * 1e9 / (batch * length * channels * states)
                result["times_ours"] = result["ns_per_element"] / best["ours"]["ns_per_element"]
                results.append(result)
    return results


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| shape (B, L, E, N) | direction | contestant | ms | CPU ms | ns per (t, d, n) | times ours | extra MB |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---:|")
    for r in results:
        shape = ", ".join(map(str, r["shape"]))
        milliseconds = f"{r['seconds'] * 1e3:.2f} | {r['cpu_seconds'] * 1e3:.2f}"
        numbers = f"{milliseconds} | {r['ns_per_element']:.3f} | {r['times_ours']:.1f}"
        lines.append(f"| {shape} | {r['direction']} | {r['contestant']} | {numbers} | {r['extra_bytes'] / 1e6:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, compete, print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="contestants, with commas; ours is always in")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        name, shape, direction, threads = json.loads(arguments.child)
        with contextlib.redirect_stdout(sys.stderr):  # libraries print when they are imported
            found = measure(name, tuple(shape), direction, threads)
        print(json.dumps(found))
        return
    names = ["ours", *(name for name in arguments.only.split(",") if name != "ours")]
    problems = [problem for problem in map(wrong, names) if problem is not None]
    if problems:
        sys.exit("no numbers: " + "; ".join(problems))
    results = compete(names, arguments.threads, arguments.rounds)
    print(json.dumps({"results": results}) if arguments.json else table(results))


if __name__ == "__main__":
    main()
