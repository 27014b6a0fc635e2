"""A small GPU of compute capability 9.0 that is the emulator: the package's wrappers launch its CUDA kernels there."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mambabyte.ops import nvrtc
from tests import emulator

MULTIPROCESSORS, SHARED_BYTES = 4, 227 * 1024


class Graph:
    """Launches that are recorded, not run, while it is captured."""

    capturing: "Graph | None" = None

    def __init__(self) -> None:
        self.launches: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Kernels launched here are kept for `replay`."""
        Graph.capturing = self
        yield
        Graph.capturing = None

    def replay(self) -> None:
        """Run them, as often as one likes."""
        for launch in self.launches:
            launch()


class Kernel:
    """In the place of `nvrtc.Kernel`; `options` go to every launch."""

    def __init__(self, kernel: emulator.Emulated, options: dict[str, Any]) -> None:
        self._run = functools.partial(kernel, **options)

    def __call__(self, grid: tuple[int, ...], threads: int, *arguments: Any, shared: int = 0, **options: Any) -> None:
        if shared > SHARED_BYTES:
            raise ValueError(f"a block has {SHARED_BYTES} bytes of shared memory, not {shared}")
        launch = functools.partial(self._run, grid, threads, *arguments, shared=shared, **options)
        launch() if Graph.capturing is None else Graph.capturing.launches.append(launch)

    def together(self, blocks: int, threads: int, *arguments: Any, **options: Any) -> None:
        """All blocks of an emulated launch can wait for each other."""
        self((blocks,), threads, *arguments, **options)


def pretend(patch: pytest.MonkeyPatch, **options: Any) -> None:
    """Until the patch is undone, CPU tensors are on that GPU for the wrappers; skips where nothing can be emulated."""
    if reason := emulator.why_not():
        pytest.skip(reason)
    patch.setattr(nvrtc, "why_not", lambda _: None)
    patch.setattr(nvrtc, "hardware", lambda _: (MULTIPROCESSORS, SHARED_BYTES))
    patch.setattr(nvrtc, "get", lambda *a, **k: Kernel(emulator.get(*a, **k), options))
    patch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    patch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    patch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    patch.setattr(torch.cuda, "CUDAGraph", Graph)
    patch.setattr(torch.cuda, "graph", Graph.capture)
    patch.setattr(torch, "zeros", _unpinned(torch.zeros))


def _unpinned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *a, pin_memory=False, **k: make(*a, **k)
