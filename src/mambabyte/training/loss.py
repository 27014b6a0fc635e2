"""The training loss: nats over the bytes that are scored, and their price in bits."""

import math

from torch import Tensor

from mambabyte.data import IGNORE
from mambabyte.ops.cross_entropy import cross_entropy

BITS_PER_NAT = 1 / math.log(2)


def summed_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) summed over the scored targets, float32 whatever the dtype of the logits.

    logits (B, L, V); targets (B, L) int64, `IGNORE` where nothing is scored.
    """
    nats, _ = cross_entropy(logits, targets, ignore_index=IGNORE)
    return nats


def scored(targets: Tensor) -> int:
    """How many targets are scored."""
    return int((targets != IGNORE).sum())
