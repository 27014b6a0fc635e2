"""Whether Triton can run an op here, and tensors as its kernels take them. Imports no triton until it is asked."""

import functools
import subprocess
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Rows = tuple[Tensor, int, int]


def why_not(tensor: Tensor) -> str | None:
    """A sentence why Triton kernels of this package cannot run on this tensor; None when they can.

    Under Triton's interpreter (TRITON_INTERPRET=1 in the environment) they run on tensors of any device, slowly.
    """
    if not _installed():
        return "the package triton, which CUDA and ROCm builds of torch bring along, is not installed"
    if tensor.dtype not in DTYPES:
        return f"its kernels take bfloat16, float16 and float32, not {tensor.dtype}"
    if interpreted():
        return None
    if tensor.device.type != "cuda":
        return f"the tensors are on {tensor.device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(tensor.device)
        return f"its kernels need compute capability 8.0, this GPU has {major}.{minor}"
    return _why_no_launch()


@functools.cache
def _installed() -> bool:
    return find_spec("triton") is not None


@functools.cache
def interpreted() -> bool:
    """Whether Triton interprets its kernels in this process; it decides when it is first imported."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _why_no_launch() -> str | None:
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"Triton cannot build its launcher, for which it needs a C compiler and Python's headers: {error}"
    return None


def on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels launched inside run on this device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def multiprocessors(device: torch.device) -> int:
    """How many there are; 1 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def rows(tensor: Tensor) -> Rows:
    """The tensor (B, L, E) or (B, E) with the strides of batch and rows; a copy unless channels are neighbours."""
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor, tensor.stride(0), tensor.stride(1) if tensor.ndim > 2 else 0


def floats(tensor: Tensor) -> Tensor:
    """float32 and contiguous."""
    return tensor.to(torch.float32).contiguous()


def flags(resets: Tensor | None) -> Tensor | None:
    """Booleans as bytes, contiguous."""
    return None if resets is None else resets.contiguous().view(torch.uint8)
