"""Values read from a stranger's JSON, with limits: a config that asks for 10^12 weights is refused, not obeyed."""

from collections.abc import Mapping
from typing import Any

import torch

WIDTH = 1 << 16
LAYERS = 1 << 12
VOCABULARY = 1 << 20
ANY = 1 << 20
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def integer(data: Mapping[str, Any], key: str, default: int, low: int, high: int, where: str) -> int:
    """`data[key]`, or `default` where the key is absent. Raises ValueError unless it is an int in [low, high]."""
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: {key} must be a whole number, got {_short(value)}")
    if not low <= value <= high:
        raise ValueError(f"{where}: {key} must be between {low} and {high}, got {_short(value)}")
    return value


def flag(data: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    """`data[key]`, or `default` where the key is absent. Raises ValueError unless it is true or false."""
    value = data.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {key} must be true or false, got {_short(value)}")
    return value


def dtype(data: Mapping[str, Any], key: str, where: str) -> torch.dtype | None:
    """The floating-point dtype of torch's named under `key`; None where the key is absent or null.

    Raises ValueError, listing the names, for anything else.
    """
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or value not in DTYPES:
        raise ValueError(f"{where}: {key} must be one of {', '.join(DTYPES)}, got {_short(value)}")
    return DTYPES[value]


def rank(data: Mapping[str, Any], key: str, where: str) -> int | None:
    """The rank of dt under `key`; None for "auto" or an absent key. Raises ValueError for anything but a count."""
    return None if data.get(key, "auto") == "auto" else integer(data, key, 1, 1, WIDTH, where)


def epsilon(data: Mapping[str, Any], key: str, default: float, where: str) -> float:
    """A norm's epsilon under `key`. Raises ValueError unless it is a number in [0, 1]."""
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{where}: {key} must be a number between 0 and 1, got {_short(value)}")
    return float(value)


def every_number(value: Any, where: str, depth: int = 16) -> None:
    """Check a nested JSON value: numbers of at most 2^20, lists of at most 4096 items, `depth` levels.

    Raises ValueError naming the first place that is beyond.
    """
    if depth == 0:
        raise ValueError(f"{where[:200]}: nested deeper than any config of ours")
    if isinstance(value, Mapping):
        for key, item in value.items():
            every_number(item, f"{where}.{key}", depth - 1)
    elif isinstance(value, list):
        if len(value) > LAYERS:
            raise ValueError(f"{where}: a list of {len(value)} items; at most {LAYERS} are read")
        for i, item in enumerate(value):
            every_number(item, f"{where}[{i}]", depth - 1)
    elif isinstance(value, (int, float)) and not abs(value) <= ANY:
        raise ValueError(f"{where}: {_short(value)} is above {ANY}, the largest number read from a model's config")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
