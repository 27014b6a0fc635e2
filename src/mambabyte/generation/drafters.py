"""Drafters: cheap guesses at the bytes to come, which the engine verifies several at a time.

A guess is never trusted, so a drafter may be anything; only speed depends on how good it is.
"""

import copy
import itertools
import math
from typing import Protocol

import torch

from mambabyte.generation.cursor import Cursor
from mambabyte.generation.engine import Engine, Logits, open_engine, prefill
from mambabyte.generation.sampling import lead
from mambabyte.generation.speculation import Confidence
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import BYTES, DOCUMENT_START


class Guesser(Protocol):
    """A drafter's view of one row."""

    def read(self, data: bytes) -> None:
        """Take bytes that were decided, which follow those read before."""
        ...

    def guess(self, count: int, cursor: Cursor, confidence: Confidence) -> bytes:
        """At most `count` bytes (which is 1 or more) that may follow those read; `cursor` is the row's.

        A drafter that knows by how much a byte wins asks `confidence` whether it is worth guessing, each in its turn,
        and before a read of its model whether that is.
        """
        ...

    def close(self) -> None:
        """The row has left: free what is held for it."""
        ...


class Drafter(Protocol):
    """What makes a guesser for each row. `cost` is the time of guessing one byte as a fraction of a verifying pass."""

    cost: float

    def begin(self, text: bytes) -> Guesser:
        """A guesser that has read `text`."""
        ...


class LookupDrafter:
    """Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding): what followed these bytes the last time.

    No model and no memory but the text; good where text repeats itself, as code and edited documents do.
    """

    cost = 0.0

    def __init__(self, shortest: int = 4, window: int = 1 << 16) -> None:
        self.shortest, self.window = shortest, window

    def begin(self, text: bytes) -> "LookupGuesser":
        """See `Drafter.begin`; the last `window` bytes are searched."""
        guesser = LookupGuesser(self.shortest)
        guesser.read(text[-self.window :])
        return guesser


class LookupGuesser:
    """Finds the longest earlier occurrence of the last bytes among the latest few of their last `shortest`."""

    CANDIDATES, LONGEST = 16, 64

    def __init__(self, shortest: int) -> None:
        self._shortest = shortest
        self._text = bytearray()
        self._ends: dict[bytes, list[int]] = {}  # where each run of `shortest` bytes ended, at every earlier place

    def read(self, data: bytes) -> None:
        """See `Guesser.read`."""
        n = self._shortest
        for byte in data:
            if len(self._text) >= n:  # what ends here has something after it only now
                self._ends.setdefault(bytes(self._text[-n:]), []).append(len(self._text))
            self._text.append(byte)

    def guess(self, count: int, cursor: Cursor, confidence: Confidence) -> bytes:  # noqa: ARG002
        """See `Guesser.guess`; nothing where the last bytes are new. A match twice as long leads by 1 more."""
        ends = self._ends.get(bytes(self._text[-self._shortest :]), [])
        if not ends:
            return b""
        common, best = max((self._common(end), end) for end in ends[-self.CANDIDATES :])
        period = len(self._text) - best  # beyond the end of the text it is taken to go round
        sure = itertools.takewhile(lambda i: confidence.byte(math.log2((common + i) / self._shortest)), range(count))
        return bytes(self._text[best + i % period] for i in sure)

    def close(self) -> None:
        """See `Guesser.close`; nothing is held."""

    def _common(self, end: int) -> int:
        """How many bytes before `end` equal the last ones of the text, at most `LONGEST`."""
        length = min(end, self.LONGEST)
        there = int.from_bytes(self._text[end - length : end], "big")
        here = int.from_bytes(self._text[-length:], "big")
        differ = there ^ here  # as one number each: what agrees at the end is a run of zero bits
        return ((differ & -differ).bit_length() - 1) // 8 if differ else length


def drafting_engine(model: ByteLM, outputs: int = BYTES) -> Engine:
    """The fastest engine for guesses, with weights of 16 bits: those may be a little wrong. The model is copied."""
    return open_engine(copy.deepcopy(model).to(torch.bfloat16), outputs=outputs)


class ByteDrafter:
    """A smaller byte model, which reads and guesses byte by byte with the row's own noise.

    `engine` is one of the drafter's model; None opens the fastest.
    """

    def __init__(self, model: ByteLM, cost: float = 0.2, engine: Engine | None = None) -> None:
        self.cost = cost
        self._engine = engine or drafting_engine(model)

    def begin(self, text: bytes) -> "ByteGuesser":
        """See `Drafter.begin`."""
        return ByteGuesser(self._engine, text or DOCUMENT_START)


class ByteGuesser:
    """Holds a row of the drafter's engine after every byte it guessed, so that nothing is read twice when a part of the
    guess is accepted. What else was decided waits, and is read at once when the next guess is asked for."""

    def __init__(self, engine: Engine, text: bytes) -> None:
        context = prefill(engine.model, text)
        self._engine = engine
        self._trail: list[tuple[int, Logits]] = [(engine.join(context), context.logits[0].cpu().numpy())]
        self._guessed, self._unread = b"", b""

    def read(self, data: bytes) -> None:
        """See `Guesser.read`."""
        if self._unread:
            self._unread += data
            return
        known = 0
        while known < min(len(data), len(self._trail) - 1) and data[known] == self._guessed[known]:
            known += 1
        kept = self._trail.pop(known)
        self.close()
        self._trail, self._guessed, self._unread = [kept], b"", data[known:]

    def guess(self, count: int, cursor: Cursor, confidence: Confidence) -> bytes:
        """See `Guesser.guess`."""
        if self._unread:
            confidence.catch_up()
            row = self._trail[-1][0]
            self._trail, self._unread = [(row, self._engine.read([row], [self._unread])[0][-1].copy())], b""
        guessed = bytearray()
        while len(guessed) < count and not cursor.ended:
            row, logits = self._trail[-1]
            byte, by = lead(cursor.scores(logits))
            if not confidence.byte(by):
                break
            cursor = cursor.after(byte)
            guessed.append(byte)
            if len(guessed) == count or not confidence.read():
                break
            row = self._engine.fork(row)
            self._trail.append((row, self._engine.read([row], [guessed[-1:]])[0][-1].copy()))
        self._guessed = bytes(guessed)
        return self._guessed

    def close(self) -> None:
        """See `Guesser.close`."""
        for row, _ in self._trail:
            self._engine.leave(row)
        self._trail = []
