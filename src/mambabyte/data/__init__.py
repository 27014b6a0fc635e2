"""Bytes in: corpora of documents, prepared sets, training windows over them and the order they come in."""

from mambabyte.data.corpus import Corpus
from mambabyte.data.prefetch import prefetch
from mambabyte.data.prepared import describe
from mambabyte.data.shards import is_set
from mambabyte.data.windows import IGNORE, Batch, Windows

__all__ = ["IGNORE", "Batch", "Corpus", "Windows", "describe", "is_set", "prefetch"]
