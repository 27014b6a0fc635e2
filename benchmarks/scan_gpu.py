"""Time the scan and the convolution on one GPU against their floors and, where it is importable, against mamba-ssm.

    python benchmarks/scan_gpu.py [scan|conv] [--shapes 8x8192x2048 ...] [--json]

bf16, 16 states, everything fused (softplus, gate, D, bias). A time is the median of repeated runs, each after the
caches were flushed. The scan's floor is its exponentials (16 a multiprocessor and clock) or its bytes, whichever takes
longer; the convolution's is its bytes, at the rate that a copy reaches in the same run.
"""

import argparse
import importlib.util
import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from mambabyte.ops import causal_conv, selective_scan

SHAPES = ["8x8192x2048", "1x8192x2048", "1x65536x2048", "4x8192x3584", "16x2048x2048", "32x2048x2048", "8x8191x2048"]
STATES = 16
EXPONENTIALS_A_CLOCK = 16  # of one multiprocessor
CLOCK = 1.755e9  # what an H100 or H200 holds under load


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="?", choices=("scan", "conv"), default="scan")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="batch x length x channels")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    copy = copy_rate()
    for text in arguments.shapes:
        batch, length, channels = (int(n) for n in text.split("x"))
        row = {"op": arguments.op, "shape": text}
        row |= (scan if arguments.op == "scan" else conv)(batch, length, channels, copy)
        print(json.dumps(row) if arguments.json else "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def scan(batch: int, length: int, channels: int, copy: float) -> dict[str, float]:
    """Milliseconds of forward and forward + backward, ours and mamba-ssm's, beside the floors."""
    rows, per_state = (batch, length, channels), (batch, length, STATES)
    x, dt, z = leaf(*rows), leaf(*rows), leaf(*rows)
    B, C = leaf(*per_state), leaf(*per_state)
    A = (-torch.arange(1, STATES + 1, device="cuda").float().repeat(channels, 1)).requires_grad_()
    D, bias = leaf(channels, dtype=torch.float32), leaf(channels, dtype=torch.float32)
    result = both(lambda: selective_scan(x, dt, A, B, C, D, z, dt_bias=bias)[0])
    elements = batch * length * channels
    rate = torch.cuda.get_device_properties("cuda").multi_processor_count * EXPONENTIALS_A_CLOCK * CLOCK
    # a (position, channel): softplus and gate cost four more; x, dt, z, dy and y or the gradients are two bytes each
    forward = max(elements * (STATES + 4) / rate, elements * 8 / copy)
    backward = max(elements * (2 * STATES + 5) / rate, elements * 14 / copy)
    result |= {"floor_forward": round(forward * 1e3, 3), "floor_both": round((forward + backward) * 1e3, 3)}
    if importlib.util.find_spec("selective_scan_cuda") and importlib.util.find_spec("mamba_ssm"):
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        x, dt, z, B, C = (t.detach().mT.contiguous().requires_grad_() for t in (x, dt, z, B, C))
        theirs = both(lambda: selective_scan_fn(x, dt, A, B, C, D, z, bias, delta_softplus=True))
        result |= {f"mamba_ssm_{name}": ms for name, ms in theirs.items()}
    return result


def conv(batch: int, length: int, channels: int, copy: float) -> dict[str, float]:
    """The same for the convolution with four taps, bias and SiLU."""
    x = leaf(batch, length, channels)
    weight, bias = leaf(channels, 4, dtype=torch.float32), leaf(channels, dtype=torch.float32)
    result = both(lambda: causal_conv(x, weight, bias)[0])
    elements = batch * length * channels
    result |= {"floor_forward": round(elements * 4 / copy * 1e3, 4), "floor_both": round(elements * 10 / copy * 1e3, 4)}
    if importlib.util.find_spec("causal_conv1d"):
        from causal_conv1d import causal_conv1d_fn

        x = x.detach().mT.contiguous().requires_grad_()
        theirs = both(lambda: causal_conv1d_fn(x, weight.bfloat16(), bias.bfloat16(), activation="silu"))
        result |= {f"causal_conv1d_{name}": ms for name, ms in theirs.items()}
    return result


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random values that want a gradient."""
    return torch.randn(*shape, device="cuda", dtype=dtype).requires_grad_()


def both(forward: Callable[[], Tensor]) -> dict[str, float]:
    """Median milliseconds of the forward without gradients and of forward + backward, and their spread in percent."""
    dy = torch.randn_like(forward())

    def step() -> None:
        forward().backward(dy)

    with torch.no_grad():
        alone, spread = timed(forward)
    together, spread_both = timed(step)
    return {"forward": alone, "both": together, "spread_percent": max(spread, spread_both)}


def timed(run: Callable[[], object], repeats: int = 30) -> tuple[float, float]:
    """Median milliseconds and the distance between the quartiles in percent of it."""
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    for _ in range(3):
        run()
    edges = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for before, after in edges:
        flush.zero_()
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in edges]
    low, median, high = statistics.quantiles(times, n=4)
    return round(median, 4), round(100 * (high - low) / median, 1)


def copy_rate() -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.randn(2**28, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    ms, _ = timed(lambda: target.copy_(source))
    return 2 * source.numel() * source.element_size() / ms * 1e3


if __name__ == "__main__":
    main()
