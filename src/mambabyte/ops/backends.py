"""Which kernel runs an op: one resolver, a reason for every rejection, nothing probed at import.

A backend is a module with a `why_not(...)` function that returns None when the backend can serve the call and otherwise
a sentence saying why it cannot. `"auto"` takes the backend of the tensor's device and falls back to the reference,
saying so once; a backend forced by name that cannot run raises.
"""

import functools
import logging
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import torch

logger = logging.getLogger("mambabyte")

BY_DEVICE = {"cpu": "cpu", "cuda": "cuda"}
NAMES = ("auto", "reference", *BY_DEVICE.values())

WhyNot = Callable[[ModuleType], str | None]


def choose(op: str, backend: str, device: torch.device, why_not: WhyNot) -> str:
    """Name of the backend that runs `op` (a package under `mambabyte.ops`) on `device`: "reference", "cpu" or "cuda".

    `why_not(module)` asks the backend's module whether it can serve this call. Raises ValueError for an unknown name
    and RuntimeError, with the backend's own reason, when a backend forced by name cannot run.
    """
    if backend not in NAMES:
        raise ValueError(f"backend={backend!r} is not one of {', '.join(NAMES)}")
    if backend == "reference":
        return backend
    wanted = BY_DEVICE.get(device.type) if backend == "auto" else backend
    if torch.compiler.is_compiling():  # a tracer cannot import and probe; the op itself does when it runs
        return wanted or "reference"
    if wanted is None:
        _say_once(op, f"no kernels are written for {device.type} tensors")
        return "reference"
    reason = _reason(op, wanted, device, why_not)
    if reason is None:
        return wanted
    if backend != "auto":
        raise RuntimeError(f"{op}: the {backend} backend cannot run here: {reason}")
    _say_once(op, reason)
    return "reference"


def _reason(op: str, backend: str, device: torch.device, why_not: WhyNot) -> str | None:
    if BY_DEVICE.get(device.type) != backend:
        return f"the tensors are on {device.type}"
    try:
        module = import_module(f"mambabyte.ops.{op}.{backend}")
    except ImportError as missing:  # an optional dependency (llvmlite, cuda.core) that is not installed, or in part
        return f"it cannot be imported: {missing}"
    return why_not(module)


@functools.lru_cache(maxsize=64)
def _say_once(op: str, reason: str) -> None:
    logger.warning("%s runs on the slower plain-torch reference: %s", op, reason)
