"""Floors: the time that the bytes, exponentials and matrix products of an op take at the rates of this machine.

The counts are those of docs/kernels.md. Rates of copies and products are measured in the same run; the fastest round
counts, since a floor is what the machine can do.
"""

import dataclasses
import functools

import torch

from mambabyte.benchmarking.timing import compare

ROUNDS = 20
COPIED_ON_GPU = 2**30  # bytes: beyond every cache
LEAST_COPIED = 2**22  # bytes: below that a copy measures the call
EXPONENTIALS_A_CLOCK = 16  # of one multiprocessor
CLOCK = 1.755e9  # hertz: what an H100 or H200 holds under load; other GPUs differ a little


@dataclasses.dataclass(frozen=True)
class Work:
    """What an op cannot avoid: bytes read and written, and exponentials."""

    bytes: int
    exponentials: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.exponentials + other.exponentials)


def milliseconds(work: Work, device: torch.device) -> float:
    """The bytes at the rate of a copy or, on a GPU, the exponentials at that of its special function units.

    The longer of the two. A CPU has no such unit: its floor is the bytes.
    """
    moved = work.bytes / copy_rate(device, work.bytes)
    if device.type != "cuda":
        return moved * 1e3
    units = torch.cuda.get_device_properties(device).multi_processor_count * EXPONENTIALS_A_CLOCK
    return max(moved, work.exponentials / (units * CLOCK)) * 1e3


def copy_rate(device: torch.device, working_set: int) -> float:
    """Bytes a second, read and written, of a copy: on a CPU, which has large caches, of a working set of that size."""
    return _copy_rate(device, COPIED_ON_GPU if device.type == "cuda" else max(LEAST_COPIED, working_set))


@functools.cache
def _copy_rate(device: torch.device, size: int) -> float:
    source = torch.ones(size // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = compare({"copy": lambda: target.copy_(source)}, device, ROUNDS)["copy"]
    return 2 * source.numel() / times.fastest * 1e3


@functools.cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = compare({"product": lambda: a @ b}, device, ROUNDS)["product"]
    return 2 * n**3 / times.fastest * 1e3
