"""The cross-entropy in Triton: the portable route to a GPU."""

import torch
from torch import Tensor

from mambabyte.ops import triton_support

MAX_VOCABULARY = 16384


def why_not(logits: Tensor) -> str | None:
    """A sentence why the Triton kernels cannot run on these logits; None when they can."""
    if not 0 < logits.shape[-1] <= MAX_VOCABULARY:
        return f"its kernels take 1 to {MAX_VOCABULARY} classes, not {logits.shape[-1]}"
    return triton_support.why_not(logits)


def forward(logits: Tensor, targets: Tensor, *, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The loss of every row, zero where the target is ignored, and log sum exp(logits), float32 of targets' shape."""
    from mambabyte.ops.cross_entropy import triton_kernels

    logits, targets = logits.contiguous(), targets.contiguous()
    losses = torch.empty(targets.shape, device=logits.device, dtype=torch.float32)
    log_sums = torch.empty_like(losses)
    if targets.numel():
        outputs = (losses, log_sums, ignore_index, logits.shape[-1])
        with triton_support.on(logits.device):
            triton_kernels.forward[(targets.numel(),)](logits, targets, *outputs, **_options(logits))
    return losses, log_sums


def backward(dlosses: Tensor, logits: Tensor, targets: Tensor, log_sums: Tensor, *, ignore_index: int) -> Tensor:
    """The gradient of the logits, in their dtype."""
    from mambabyte.ops.cross_entropy import triton_kernels

    logits, targets = logits.contiguous(), targets.contiguous()
    dlogits = torch.empty_like(logits)
    one = all(stride == 0 for stride in dlosses.stride())  # the gradient of a sum: one number, broadcast
    dlosses = dlosses if one else dlosses.contiguous()
    if targets.numel():
        arguments = (dlosses, int(not one), logits, targets, log_sums, dlogits, ignore_index, logits.shape[-1])
        with triton_support.on(logits.device):
            triton_kernels.backward[(targets.numel(),)](*arguments, **_options(logits))
    return dlogits


def _options(logits: Tensor) -> dict[str, int]:
    block = 1 << (logits.shape[-1] - 1).bit_length()
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}
