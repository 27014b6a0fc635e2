"""backend="cuda" on CPU tensors: the package's own wrappers launch its CUDA kernels on the emulator."""

from collections.abc import Iterator
from importlib import import_module

import pytest

from mambabyte.ops import backends
from mambabyte.ops.selective_scan import cuda as scan
from tests.emulator import gpu

OPS = ("causal_conv", "cross_entropy", "mixer", "norm", "selective_scan")


def forget_kernels() -> None:
    """No module keeps a kernel or a plan from another device."""
    for op in OPS:
        for value in vars(import_module(f"mambabyte.ops.{op}.cuda")).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.fixture(autouse=True)
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU of a few multiprocessors, every access of whose threads is checked."""
    gpu.pretend(monkeypatch, races=True)
    monkeypatch.setattr(backends, "BY_DEVICE", {"cpu": ("cuda",)})
    monkeypatch.setattr(scan, "_multiprocessors", lambda _: gpu.MULTIPROCESSORS)
    forget_kernels()
    yield
    forget_kernels()
