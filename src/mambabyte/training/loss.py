"""The training loss: nats over the bytes that are scored, and their price in bits."""

import math

from torch import Tensor
from torch.nn import functional as F

from mambabyte.data import IGNORE

BITS_PER_NAT = 1 / math.log(2)


def summed_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) summed over the scored targets, float32 whatever the dtype of the logits.

    logits (B, L, V); targets (B, L) int64, `IGNORE` where nothing is scored.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def scored_bytes(targets: Tensor) -> int:
    """How many targets are scored."""
    return int((targets != IGNORE).sum())
