"""backend="cuda" on CPU tensors: the package's own wrappers launch its CUDA kernels on the emulator."""

import contextlib
import functools
from importlib import import_module

import pytest
import torch

from mambabyte.ops import backends, nvrtc
from tests import emulator

OPS = ("causal_conv", "cross_entropy", "mixer", "norm", "selective_scan")
MULTIPROCESSORS = 4


def forget_kernels() -> None:
    """No module keeps a kernel or a plan from another device."""
    for op in OPS:
        for value in vars(import_module(f"mambabyte.ops.{op}.cuda")).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.fixture(autouse=True)
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of a few multiprocessors, every access of whose threads is checked."""
    if reason := emulator.why_not():
        pytest.skip(reason)
    monkeypatch.setattr(backends, "BY_DEVICE", {"cpu": ("cuda",)})
    monkeypatch.setattr(nvrtc, "why_not", lambda _: None)
    monkeypatch.setattr(nvrtc, "get", lambda *a, **k: functools.partial(emulator.get(*a, **k), races=True))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    scan = import_module("mambabyte.ops.selective_scan.cuda")
    monkeypatch.setattr(scan, "_multiprocessors", lambda _: MULTIPROCESSORS)
    forget_kernels()
    yield
    forget_kernels()
