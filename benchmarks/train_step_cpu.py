"""One training step on the CPU, ours beside Hugging Face's Mamba: same sizes, same weights, same data, one run.

    python benchmarks/train_step_cpu.py [--preset mambabyte-5m] [--batch 4] [--length 1024] [--rounds 3] [--json]

Every contestant runs in a process of its own, so that its peak memory is its own; contestants take turns so that a busy
machine disturbs all of them. A step is forward, cross-entropy, backward, clipping and AdamW, on the same bytes each
time. Before anything is timed the two models are given the same weights and must give the same logits within 1e-4.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

# transformers' MambaForCausalLM with use_mambapy=True: its default loop is quadratic in the length when it trains
CONTESTANTS = ("mambabyte", "mambabyte bf16", "hf mambapy", "hf mambapy bf16")


def worker(name: str, preset: str, batch: int, length: int, steps: int) -> dict[str, float]:
    """Seconds a training step (median) and peak resident bytes of this process."""
    import torch

    from mambabyte.benchmarking import peers, train

    device, dtype = torch.device("cpu"), torch.bfloat16 if name.endswith("bf16") else torch.float32
    model: Any = train.build(preset, device, dtype)
    loss = train.ours(model)
    if name.startswith("hf"):
        model = peers.transformers(model).train()
        loss = train.theirs(model, dtype)
    step = train.Step(model, loss, train.random_bytes(batch, length + 1, device))
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": peak}


def disagreement(preset: str) -> float:
    """Largest difference between the two models' logits on the same weights."""
    import torch

    from mambabyte.benchmarking import peers
    from mambabyte.models import ByteLM

    ids = torch.randint(0, 256, (2, 65), generator=torch.Generator().manual_seed(1))
    model = ByteLM.from_preset(preset, seed=0)
    with torch.no_grad():
        return float((model(ids)[0] - peers.transformers(model)(ids).logits).abs().max())


def race(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every contestant in turns, `rounds` times; the best time and the worst memory of each."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    sizes = ["--preset", args.preset, "--batch", str(args.batch), "--length", str(args.length)]
    for _ in range(args.rounds):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--worker", name, *sizes, "--steps", str(args.steps)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[name].append(json.loads(output.splitlines()[-1]))
    return {
        name: {
            "seconds": min(run["seconds"] for run in results),
            "peak_mib": max(run["peak_bytes"] for run in results) / 2**20,
        }
        for name, results in runs.items()
    }


def main() -> None:
    """Check, race, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mambabyte-5m")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.worker, args.preset, args.batch, args.length, args.steps)))
        return
    difference = disagreement(args.preset)
    if difference > 1e-4:
        sys.exit(f"the models disagree by {difference:.1e}: no timings")
    rows = race(args)
    best = min(row["seconds"] for name, row in rows.items() if name.startswith("hf"))
    print(f"{args.preset}, {args.batch} x {args.length} bytes a step; logits differ by {difference:.1e}")
    for name, row in rows.items():
        speed = args.batch * args.length / row["seconds"]
        ratio = best / row["seconds"]
        print(
            f"{name:16s} {row['seconds'] * 1e3:8.0f} ms {speed:9.0f} bytes/s {ratio:6.1f} x the best hf"
            f"  peak {row['peak_mib']:6.0f} MiB"
        )
    if args.json:
        print(json.dumps({"logits_difference": difference, "rows": rows}))


if __name__ == "__main__":
    main()
