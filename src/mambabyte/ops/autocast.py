"""Autocast kept out of an op whose contract says in which dtype it computes."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Matrix products inside are computed in the dtype of their operands, on `device`, whatever is on outside."""
    kind = device.type
    # torch 2.11 cannot trace the second question; what is compiled runs on devices that have autocast
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
    if has_autocast and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
