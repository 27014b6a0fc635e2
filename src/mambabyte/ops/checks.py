"""Shape checks shared by the ops' contracts: a wrong tensor is named, with what it is and what it should be."""

from collections.abc import Mapping

import torch
from torch import Tensor


def expect_shapes(op: str, tensors: Mapping[str, tuple[Tensor | None, tuple[int, ...]]], device: torch.device) -> None:
    """Raise ValueError unless every tensor that is not None has the given shape and lies on `device`."""
    for name, (tensor, shape) in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {device} like x")


def expect_dimensions(op: str, name: str, tensor: Tensor, letters: str) -> None:
    """Raise ValueError unless `tensor` has one dimension per letter of `letters`, as in "B L E"."""
    if tensor.ndim != len(letters.split()):
        raise ValueError(f"{op}: {name} must have dimensions ({letters}), got shape {tuple(tensor.shape)}")


def expect_bool(op: str, resets: Tensor | None) -> None:
    """Raise ValueError unless `resets`, when given, is a bool tensor."""
    if resets is not None and resets.dtype != torch.bool:
        raise ValueError(f"{op}: resets must be bool, got {resets.dtype}; use resets.bool() for a 0/1 mask")
