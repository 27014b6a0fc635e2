"""Bytes in: corpora of documents, prepared sets, training windows over them, their order, and subwords of bytes.

Names are imported when they are used: preparing data needs no torch, only windows do.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    "IGNORE": "windows",
    "Batch": "windows",
    "Batches": "windows",
    "Corpus": "corpus",
    "SubwordWindows": "subword_windows",
    "Subwords": "subwords",
    "Windows": "windows",
    "describe": "prepared",
    "is_set": "shards",
    "prefetch": "read_ahead",
}
__all__ = [
    "IGNORE",
    "Batch",
    "Batches",
    "Corpus",
    "SubwordWindows",
    "Subwords",
    "Windows",
    "describe",
    "is_set",
    "prefetch",
]

if TYPE_CHECKING:
    from mambabyte.data.corpus import Corpus
    from mambabyte.data.prepared import describe
    from mambabyte.data.read_ahead import prefetch
    from mambabyte.data.shards import is_set
    from mambabyte.data.subword_windows import SubwordWindows
    from mambabyte.data.subwords import Subwords
    from mambabyte.data.windows import IGNORE, Batch, Batches, Windows


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
