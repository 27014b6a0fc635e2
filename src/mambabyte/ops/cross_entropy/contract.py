"""Contract of the cross-entropy: what callers may rely on, whichever backend computes it."""

import torch
from torch import Tensor

from mambabyte.ops import checks
from mambabyte.ops.backends import choose
from mambabyte.ops.cross_entropy import autograd, reference


def cross_entropy(
    logits: Tensor, targets: Tensor, *, ignore_index: int = -100, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax(logits)[target] in nats over the targets that count, and how many count.

    Args:
        logits: (..., vocabulary); float32, bfloat16, float16 or float64.
        targets: (...) integers in [0, vocabulary), or `ignore_index` where nothing is to be learned. Of any other
            target the kernels make a loss and gradients that are NaN: raising would wait for the GPU.
        backend: "auto" (by device), "reference", "cuda" or "triton".

    Returns:
        The sum, a float32 scalar (float64 for float64 logits) computed in that precision whatever the logits are, and
        the count, an int64 scalar. The sum is differentiable in the logits; its gradient has their dtype.

    Raises:
        ValueError: a tensor of the wrong shape, dtype or device, named. IndexError: on a CPU, the reference was given a
            target that is out of bounds. RuntimeError: a forced backend cannot run, or another than the reference is
            differentiated twice or in forward mode.
    """
    if logits.ndim == 0:
        raise ValueError("cross_entropy: logits must have at least one dimension, that of the vocabulary")
    shape = tuple(logits.shape)
    checks.expect_floats("cross_entropy", {"logits": (logits, shape)}, logits.device)
    checks.expect_shape("cross_entropy", "targets", targets, shape[:-1], logits.device)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"cross_entropy: targets must be integers, got {targets.dtype}")
    if backend == "auto" and logits.device.type != "cuda":  # plain torch is as good there
        backend = "reference"
    chosen = choose("cross_entropy", backend, logits, lambda module: module.why_not(logits))
    targets = targets.long()  # in uint8 an index of -100 would be byte 156
    count = (targets != ignore_index).sum()
    if chosen == "reference":
        return reference.cross_entropy(logits, targets, ignore_index=ignore_index), count
    return autograd.cross_entropy(logits, targets, ignore_index=ignore_index, backend=chosen), count
