"""Autocast kept out of an op whose contract says in which dtype it computes."""

from contextlib import AbstractContextManager, nullcontext

import torch


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace the question
def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Matrix products inside are computed in the dtype of their operands, on `device`, whatever is on outside."""
    kind = device.type
    if _has_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
