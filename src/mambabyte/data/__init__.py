"""Bytes in: corpora of documents, prepared sets, training windows over them and the order they come in.

Names are imported when they are used: preparing data needs no torch, only windows do.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    "IGNORE": "windows",
    "Batch": "windows",
    "Corpus": "corpus",
    "Windows": "windows",
    "describe": "prepared",
    "is_set": "shards",
    "prefetch": "read_ahead",
}
__all__ = ["IGNORE", "Batch", "Corpus", "Windows", "describe", "is_set", "prefetch"]

if TYPE_CHECKING:
    from mambabyte.data.corpus import Corpus
    from mambabyte.data.prepared import describe
    from mambabyte.data.read_ahead import prefetch
    from mambabyte.data.shards import is_set
    from mambabyte.data.windows import IGNORE, Batch, Windows


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
