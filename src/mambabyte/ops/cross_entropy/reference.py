"""The cross-entropy in plain torch. Differentiable by autograd."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int) -> Tensor:
    """Sum over the targets that count; shapes as in the contract."""
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.reshape(-1, logits.shape[-1]).to(compute)
    return F.cross_entropy(rows, targets.reshape(-1).long(), ignore_index=ignore_index, reduction="sum")
