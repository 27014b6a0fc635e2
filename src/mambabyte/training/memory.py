"""What the backward pass keeps, and less of it for more arithmetic: each layer recomputed instead of kept."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint

from mambabyte.models import ByteLM, ByteLMConfig


def bytes_per_position(config: ByteLMConfig, dtype: torch.dtype, recompute: bool) -> int:
    """Bytes of activations alive at once in training, for each position of each sequence; an upper estimate.

    Saved tensors of a Mamba layer measure 60 bytes per unit of width in float32 and 41 in bfloat16 on a CPU, about 31
    in bfloat16 on a GPU; a quarter is added for what is alive only for a moment. A recomputed layer keeps its inputs.
    """
    layer = int(1.25 * (41 if dtype.itemsize == 2 else 60)) * config.d_model
    inputs = (4 + dtype.itemsize) * config.d_model
    head = 12 * config.vocab_size  # logits, their float32 copy and its gradient
    layers = len(config.pattern)
    return head + (layer + layers * inputs if recompute else layers * layer)


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
