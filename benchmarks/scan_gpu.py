"""`mambabyte bench scan` or `conv` on one GPU over the shapes of docs/kernels.md, one JSON object a line.

python benchmarks/scan_gpu.py [scan|conv] [--shapes 8x8192x2048 ...]
"""

import argparse
import json

import torch

from mambabyte.benchmarking import operators
from mambabyte.benchmarking.conv import CONV
from mambabyte.benchmarking.scan import SCAN

SHAPES = ["8x8192x2048", "1x8192x2048", "1x65536x2048", "4x8192x3584", "16x2048x2048", "32x2048x2048", "8x8191x2048"]
ROUNDS = 30


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="?", choices=("scan", "conv"), default="scan")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="batch x length x channels")
    arguments = parser.parse_args()
    op = SCAN if arguments.op == "scan" else CONV
    for text in arguments.shapes:
        batch, length, channels = (int(n) for n in text.split("x"))
        shape = {"batch": batch, "length": length, "channels": channels}
        report = operators.bench(op, torch.device("cuda"), torch.bfloat16, **shape, rounds=ROUNDS)
        print(json.dumps(report.to_dict()), flush=True)


if __name__ == "__main__":
    main()
