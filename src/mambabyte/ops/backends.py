"""Which kernel runs an op: one resolver, a reason for every rejection, nothing probed at import.

A backend is a module with a `why_not(...)` function that returns None when the backend can serve the call and otherwise
a sentence saying why it cannot. `"auto"` takes the first of the device's backends that can, falls back to the
reference if none can, and says so once when it is not the first; a backend forced by name that cannot run raises.
"""

import functools
import logging
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger("mambabyte")

BY_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # the fastest first
NAMES = ("auto", "reference", "cpu", "cuda", "triton")

WhyNot = Callable[[ModuleType], str | None]


def choose(op: str, backend: str, x: Tensor, why_not: WhyNot) -> str:
    """Name of the backend that runs `op` (a package under `mambabyte.ops`) on x: one of NAMES without "auto".

    `why_not(module)` asks the backend's module whether it can serve this call. Raises ValueError for a name that the
    op has no backend of and RuntimeError, with the backend's own reason, when a backend forced by name cannot run.
    While torch.compile traces, when nothing can be imported and probed, "auto" may be left for `module` to decide when
    the op runs.
    """
    device = x.device
    if backend not in NAMES:
        raise ValueError(f"backend={backend!r} is not one of {', '.join(NAMES)}")
    if backend == "reference":
        return backend
    if torch.compiler.is_compiling():
        kernels = device.type in BY_DEVICE and x.dtype != torch.float64  # no kernel computes in float64
        return backend if kernels or backend != "auto" else "reference"
    if backend != "auto" and backend not in (written := _written(op)):
        raise ValueError(f"{op}: backend={backend!r} is not one of {', '.join(written)}")
    if backend == "auto":
        chosen, reasons = _first(op, device, why_not)
        if reasons:
            _say_once(op, chosen, "; ".join(reasons))
        return chosen
    reason = _reason(op, backend, device, why_not)
    if reason is not None:
        raise RuntimeError(f"{op}: the {backend} backend cannot run here: {reason}")
    return backend


def module(op: str, backend: str, device: torch.device, why_not: WhyNot) -> ModuleType:
    """The module of a backend that `choose` returned. Raises RuntimeError if a traced call finds that none can run."""
    if backend == "auto":
        backend, reasons = _first(op, device, why_not)
        if backend == "reference":
            raise RuntimeError(f"{op}: no kernel can run this compiled call: {'; '.join(reasons)}")
    return import_module(f"mambabyte.ops.{op}.{backend}")


@functools.cache
def _written(op: str) -> list[str]:
    """Those of NAMES that `op` can be asked for."""
    return [name for name in NAMES if name in ("auto", "reference") or find_spec(f"mambabyte.ops.{op}.{name}")]


def _first(op: str, device: torch.device, why_not: WhyNot) -> tuple[str, list[str]]:
    """The device's first backend that can run, else "reference", and why those before it cannot."""
    candidates = BY_DEVICE.get(device.type, ())
    reasons = [] if candidates else [f"no kernels are written for {device.type} tensors"]
    for candidate in candidates:
        reason = _reason(op, candidate, device, why_not)
        if reason is None:
            return candidate, reasons
        reasons.append(reason)
    return "reference", list(dict.fromkeys(reasons))


def _reason(op: str, backend: str, device: torch.device, why_not: WhyNot) -> str | None:
    if backend != "triton" and backend not in BY_DEVICE.get(device.type, ()):  # Triton's interpreter takes any device
        return f"the tensors are on {device.type}"
    if backend == "cuda" and torch.version.hip is not None:  # torch calls AMD's GPUs cuda, too
        return "this torch is built for ROCm, and NVRTC compiles for NVIDIA's GPUs"
    try:
        kernels = import_module(f"mambabyte.ops.{op}.{backend}")
    except ImportError as missing:  # an optional dependency (llvmlite, cuda.core) that is not installed, or in part
        return f"it cannot be imported: {missing}"
    return why_not(kernels)


@functools.lru_cache(maxsize=64)
def _say_once(op: str, chosen: str, reasons: str) -> None:
    where = "the slower plain-torch reference" if chosen == "reference" else f"the slower {chosen} backend"
    logger.warning("%s runs on %s: %s", op, where, reasons)
