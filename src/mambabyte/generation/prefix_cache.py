"""Prompts that begin alike are read once: the states at the ends of their pieces, kept and found again by their bytes.

Every prompt is read in pieces that end at 512, 1,024, 2,048 and 4,096 bytes and then every 4,096, with a cache and
without, so that a state that was kept has the bits of one that is computed. What is found covers at least half of a
shared beginning of 512 bytes or more, and all of a prompt that was read before.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from mambabyte.generation.engine import PREFILL_CHUNK, prefill
from mambabyte.models import ByteLM, ByteLMState
from mambabyte.models.context import Context

FIRST_PIECE = 512


class _Key(NamedTuple):
    """A piece of a prompt, after the piece with the number `before` (0: at the prompt's beginning)."""

    before: int
    piece: bytes


class _Entry(NamedTuple):
    number: int
    context: Context

    def nbytes(self, key: _Key) -> int:
        return self.context.nbytes + len(key.piece)


class PrefixCache:
    """States of one model after beginnings of prompts, `limit` bytes of them at most; the least recently used go first.

    The states belong to the model's weights as they are now, on their device: make a new cache when they change.
    `nbytes` are held; of the bytes that prompts had, `found` were not read again and `read` were.
    """

    def __init__(self, model: ByteLM, limit: int = 1 << 28) -> None:
        self.model, self.limit = model, limit
        self.nbytes = self.found = self.read = 0
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._numbers = 0

    def context(self, model: ByteLM, prompt: bytes) -> Context:
        """What `read_pieces(model, prompt, None)` gives, to the bit. Raises ValueError for another model than ours."""
        if model is not self.model:
            raise ValueError("the prefix cache holds states of another model; make one for this model")
        path: list[_Key] = []
        context, before = None, 0
        for piece in pieces(prompt):
            key = _Key(before, piece)
            entry = self._entries.get(key)
            if entry is None:
                self._numbers += 1
                entry = self._entries[key] = _Entry(self._numbers, prefill(model, piece, context))
                self.nbytes += entry.nbytes(key)
                self.read += len(piece)
            else:
                self.found += len(piece)
            context, before = entry.context, entry.number
            path.append(key)
        assert context is not None, "a prompt has at least one byte"
        self._tidy(path)
        return context

    def _tidy(self, path: list[_Key]) -> None:
        """Beginnings are used after what follows them, so that none goes before what cannot be found without it."""
        for key in reversed(path):
            self._entries.move_to_end(key)
        while self.nbytes > self.limit:
            key, entry = self._entries.popitem(last=False)
            self.nbytes -= entry.nbytes(key)


def read_pieces(model: ByteLM, prompt: bytes, state: ByteLMState | None) -> Context:
    """The context after `prompt` (at least one byte), read piece by piece from `state`."""
    for piece in pieces(prompt):
        state = prefill(model, piece, state)
    assert isinstance(state, Context), "a prompt has at least one byte"
    return state


def pieces(prompt: bytes) -> Iterator[bytes]:
    """The pieces in which a prompt is read."""
    start, stop = 0, FIRST_PIECE
    while start < len(prompt):
        yield prompt[start:stop]
        start, stop = stop, min(2 * stop, stop + PREFILL_CHUNK)
