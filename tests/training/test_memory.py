import pytest
import torch
from torch import Tensor

from mambabyte.models import ByteLM
from mambabyte.models.presets import mambabyte
from mambabyte.training.loss import summed_nats
from mambabyte.training.memory import bytes_per_position, checkpointed

ROWS, LENGTH = 2, 256


def kept(model: ByteLM) -> int:
    """Bytes of distinct storage, parameters left out, that a forward pass leaves for its backward pass."""
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: alive.append(t) or t, lambda t: t):
        logits, _ = model(ids)
        summed_nats(logits, ids)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    return sum(size for pointer, size in storages.items() if pointer not in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", [False, True])
def test_estimate_covers_what_is_kept_and_little_more(dtype: torch.dtype, recompute: bool) -> None:
    model = ByteLM(mambabyte(64, 16))
    model.compute_dtype = dtype
    if recompute:
        with checkpointed(model):
            size = kept(model)
    else:
        size = kept(model)
    estimate = ROWS * LENGTH * bytes_per_position(model.config, dtype, recompute)
    assert 0.4 * estimate < size < estimate
