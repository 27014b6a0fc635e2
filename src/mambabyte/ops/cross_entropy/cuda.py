"""The cross-entropy on an NVIDIA GPU: CUDA C++ in kernels.cu, compiled at run time."""

from functools import lru_cache

import torch
from torch import Tensor

from mambabyte.ops import nvrtc

SOURCES = ("device.cuh", "cross_entropy/kernels.cu")
MAX_VOCABULARY = 4096
WARPS = 4


def why_not(logits: Tensor) -> str | None:
    """A sentence why the CUDA kernels cannot run on these logits; None when they can."""
    if not 0 < logits.shape[-1] <= MAX_VOCABULARY:
        return f"its kernels take 1 to {MAX_VOCABULARY} classes, not {logits.shape[-1]}"
    return nvrtc.why_not(logits)


def forward(logits: Tensor, targets: Tensor, *, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The loss of every row, zero where the target is ignored, and log sum exp(logits), float32 of targets' shape."""
    logits, targets = nvrtc.quads(logits), targets.contiguous()
    losses = torch.empty(targets.shape, device=logits.device, dtype=torch.float32)
    log_sums = torch.empty_like(losses)
    _launch("cross_entropy_forward", logits, logits, targets, losses, log_sums, targets.numel(), ignore_index)
    return losses, log_sums


def backward(dlosses: Tensor, logits: Tensor, targets: Tensor, log_sums: Tensor, *, ignore_index: int) -> Tensor:
    """The gradient of the logits, in their dtype."""
    logits, targets = nvrtc.quads(logits), targets.contiguous()
    dlogits = torch.empty_like(logits)
    one = all(stride == 0 for stride in dlosses.stride())  # the gradient of a sum: one number, broadcast
    dlosses = dlosses.float() if one else dlosses.float().contiguous()
    stride = 0 if one else 1
    arguments = (dlosses, stride, logits, targets, log_sums, dlogits, targets.numel(), ignore_index)
    _launch("cross_entropy_backward", logits, *arguments)
    return dlogits


def _launch(name: str, logits: Tensor, *arguments: Tensor | int) -> None:
    vocabulary = logits.shape[-1]
    rows = logits.numel() // vocabulary
    if rows == 0:
        return
    kernel = _kernel(name, nvrtc.IO_CODES[logits.dtype], vocabulary)
    with torch.cuda.device(logits.device):
        kernel((-(-rows // WARPS),), WARPS * 32, *arguments)


@lru_cache(maxsize=64)
def _kernel(name: str, io: int, vocabulary: int) -> nvrtc.Kernel:
    return nvrtc.get(SOURCES, name, IO=io, VOCABULARY=vocabulary, WARPS=WARPS)
