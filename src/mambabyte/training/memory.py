"""Less memory for more arithmetic: each layer recomputed in the backward pass instead of kept."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.checkpoint import checkpoint

from mambabyte.models import ByteLM


@contextmanager
def checkpointed(model: ByteLM) -> Iterator[None]:
    """Inside, every residual unit of `model` keeps only its inputs for the backward pass and runs twice.

    The model is changed from outside and is as before afterwards; values and gradients are the same.
    """
    for unit in model.layers:
        unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for unit in model.layers:
            del unit.forward
