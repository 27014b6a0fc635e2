"""`mambabyte bench train` on one GPU in bfloat16, and where the time goes.

    python benchmarks/train_step_gpu.py mambabyte-353m 8 8192 [--profile] [--steps 10]

One JSON object a line: the report of the verb; with --profile the milliseconds of every kind of kernel as well.
"""

import argparse
import collections
import json

import torch

from mambabyte.benchmarking import train
from mambabyte.benchmarking.train import Step

# The first fragment found in a kernel's name says what kind of work it is.
KINDS = {
    "scan_backward": "scan backward",
    "scan_sum": "scan backward, sums over blocks",
    "scan": "scan forward",
    "conv": "convolution",
    "norm": "norm",
    "cross_entropy": "cross-entropy",
    "gemm": "matrix product",
    "nvjet": "matrix product",
    "cutlass": "matrix product",
    "splitKreduce": "matrix product",
    "cublas": "matrix product",
    "FusedAdam": "optimiser",
    "CatArray": "concatenation",
    "copy": "copies and casts",
    "Memcpy": "copies and casts",
    "Memset": "fills",
    "Fill": "fills",
    "reduce_kernel": "reductions",
    "add": "additions",
}


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("batch", type=int)
    parser.add_argument("length", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    shape = {"preset": arguments.preset, "batch": arguments.batch, "length": arguments.length}
    device = torch.device("cuda")
    report = train.bench(device, torch.bfloat16, **shape, rounds=arguments.steps)
    print(json.dumps(report.to_dict()), flush=True)
    if arguments.profile:
        model = train.build(arguments.preset, device, torch.bfloat16)
        step = Step(model, train.ours(model), train.random_bytes(arguments.batch, arguments.length + 1, device))
        for _ in range(3):
            step()
        print(json.dumps(profile(step)), flush=True)


def profile(step: Step) -> dict[str, object]:
    """Milliseconds of GPU time by kind of kernel in one step, and the largest kernels that have no kind."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        torch.cuda.synchronize()
    kinds: collections.Counter[str] = collections.Counter()
    others: collections.Counter[str] = collections.Counter()
    for event in profiler.key_averages():
        ms = event.self_device_time_total / 1e3
        kind = next((kind for part, kind in KINDS.items() if part in event.key), None)
        kinds[kind or "other"] += ms
        if kind is None:
            others[event.key[:80]] += ms
    rounded = {kind: round(ms, 2) for kind, ms in kinds.most_common()}
    return rounded | {"sum": round(kinds.total(), 2), "largest others": dict(others.most_common(8))}


if __name__ == "__main__":
    main()
