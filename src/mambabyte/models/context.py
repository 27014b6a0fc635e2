"""A state that also knows what comes next, so that reading can stop and generation start without another byte."""

import dataclasses

from torch import Tensor

from mambabyte.models.byte_lm import ByteLMState


@dataclasses.dataclass(frozen=True)
class Context(ByteLMState):
    """The state after some bytes and `logits` (B, 256) float32 of the byte that follows them.

    It is a `ByteLMState`: `model(ids, context)` reads on from it.
    """

    logits: Tensor
