"""Checks shared by the ops' contracts: a wrong tensor is named, with what it is and what it should be."""

from collections.abc import Mapping

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def expect_floats(op: str, tensors: Mapping[str, tuple[Tensor | None, tuple[int, ...]]], device: torch.device) -> None:
    """Raise ValueError unless every tensor that is not None has the given shape, a dtype of FLOATS and this device."""
    for name, (tensor, shape) in tensors.items():
        if tensor is None or (tensor.shape == shape and tensor.device == device and tensor.dtype in FLOATS):
            continue
        expect_shape(op, name, tensor, shape, device)
        raise ValueError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")


def expect_resets(op: str, resets: Tensor | None, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise ValueError unless `resets`, when given, is a bool tensor of this shape on this device."""
    if resets is None:
        return
    expect_shape(op, "resets", resets, shape, device)
    if resets.dtype != torch.bool:
        raise ValueError(f"{op}: resets must be bool, got {resets.dtype}; use resets.bool() for a 0/1 mask")


def expect_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise ValueError unless `tensor` has this shape and lies on this device."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, expected {device} like the others")


def expect_dimensions(op: str, name: str, tensor: Tensor, letters: str) -> None:
    """Raise ValueError unless `tensor` has one dimension per letter of `letters`, as in "B L E"."""
    if tensor.ndim != len(letters.split()):
        raise ValueError(f"{op}: {name} must have dimensions ({letters}), got shape {tuple(tensor.shape)}")
