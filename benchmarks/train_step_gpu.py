"""Time a whole training step on one GPU and say where the time goes.

    python benchmarks/train_step_gpu.py mambabyte-353m 8 8192 [--profile] [--steps 10]

bf16 activations over float32 weights, fused AdamW, gradient clipping, random bytes. One JSON object a line: median and
spread of the step in ms, bytes a second, peak memory; with --profile the milliseconds of every kind of kernel.
"""

import argparse
import collections
import itertools
import json
import statistics

import torch

from mambabyte.models import ByteLM
from mambabyte.ops.cross_entropy import cross_entropy

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
    step = Step(arguments.preset, arguments.batch, arguments.length)
    print(json.dumps(vars(arguments) | step.measure(arguments.steps)), flush=True)
    if arguments.profile:
        print(json.dumps(step.profile()), flush=True)


class Step:
    """A model, its optimiser and one batch of random bytes."""

    def __init__(self, preset: str, batch: int, length: int) -> None:
        with torch.device("cuda"):
            self.model = ByteLM.from_preset(preset)
        self.model.compute_dtype = torch.bfloat16
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
        self.bytes = torch.randint(0, 256, (batch, length + 1), device="cuda")

    def __call__(self) -> torch.Tensor:
        """Forward, backward, clipping and update; the mean loss in nats."""
        logits, _ = self.model(self.bytes[:, :-1])
        total, count = cross_entropy(logits, self.bytes[:, 1:])
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def measure(self, steps: int) -> dict[str, float]:
        """Median, fastest and slowest step in ms, bytes a second, peak GiB and the last loss, after three steps."""
        for _ in range(3):
            loss = self()
        torch.cuda.reset_peak_memory_stats()
        edges = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        edges[0].record()
        for edge in edges[1:]:
            loss = self()
            edge.record()
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) for a, b in itertools.pairwise(edges)]
        median = statistics.median(times)
        return {
            "ms": round(median, 2),
            "fastest": round(min(times), 2),
            "slowest": round(max(times), 2),
            "bytes_per_second": round((self.bytes.numel() - self.bytes.shape[0]) / median * 1e3),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "loss": round(loss.item(), 4),
        }

    def profile(self) -> dict[str, object]:
        """Milliseconds of GPU time by kind of kernel in one step, and the largest kernels that have no kind."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            self()
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
