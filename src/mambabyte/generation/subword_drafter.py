"""The drafter of the MambaByte paper, https://arxiv.org/abs/2401.13660: a model over subwords, several bytes a step.

The model has learnt text as the vocabulary cuts it, and guesses badly after any other cut. So its state stands where a
word began, and the subwords of the word so far are those that the vocabulary gives it, all but the last: that one may
be unfinished, and only narrows down the next subword to those that begin with it. A rejection costs nothing but the
reads after the boundary before it, whose states are held.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambabyte.data.subwords import Subwords
from mambabyte.generation.cursor import TINY, Cursor
from mambabyte.generation.drafters import drafting_engine
from mambabyte.generation.engine import DOCUMENT_START, Engine, Logits, prefill
from mambabyte.generation.sorted_pieces import SortedPieces
from mambabyte.generation.speculation import Confidence, agreement
from mambabyte.models import ByteLM, SubwordLM

Weights = NDArray[np.float32]


class _Boundary(NamedTuple):
    """After these subwords, `length` bytes, since the last word began: a row of the engine that has read them, and
    weights in proportion to the probability of each subword to follow, in the vocabulary's lexicographic order."""

    ids: tuple[int, ...]
    length: int
    row: int
    weights: Weights


class _Ahead(NamedTuple):
    """Where a guess has come to: the beginning of a subword or a `whole` one, and the row's place after it.

    `doubt` is by how much it is likelier that the subword ends here than that it goes on (in log weights): the next
    byte cannot be more certain.
    """

    piece: bytes
    cursor: Cursor
    doubt: float
    whole: bool


class SubwordDrafter:
    """A `Drafter` whose model has one id for each of the vocabulary's subwords.

    `engine` is one of the drafter's model with an output for each of them; None opens the fastest. Raises ValueError
    if the model has fewer ids than there are subwords.
    """

    def __init__(self, model: ByteLM, subwords: Subwords, cost: float = 0.1, engine: Engine | None = None) -> None:
        self.subwords, self.cost = SubwordLM(model, subwords).subwords, cost
        self._pieces = SortedPieces(subwords.pieces)
        self._engine = engine or drafting_engine(model, outputs=len(subwords))

    def begin(self, text: bytes) -> "SubwordGuesser":
        """See `Drafter.begin`."""
        return SubwordGuesser(self._engine, self.subwords, self._pieces, text or b"\n")


class SubwordGuesser:
    """Walks from boundary to boundary. `_trail` holds those since the last word began; `_rest` are its bytes so far."""

    def __init__(self, engine: Engine, subwords: Subwords, pieces: SortedPieces, text: bytes) -> None:
        self._engine, self._subwords, self._pieces = engine, subwords, pieces
        start = subwords.last_word(text)
        context = prefill(engine.model, subwords.encode(text[:start] or DOCUMENT_START), outputs=len(subwords))
        self._trail = [_Boundary((), 0, engine.join(context), self._weights(context.logits[0].cpu().numpy()))]
        self._rest, self._guessed = text[start:], b""

    def read(self, data: bytes) -> None:
        """See `Guesser.read`."""
        agreed = len(self._rest) + agreement(self._guessed, data)
        self._rest, self._guessed = self._rest + data, b""
        self._keep([boundary for boundary in self._trail if boundary.length <= agreed])

    def guess(self, count: int, cursor: Cursor, confidence: Confidence) -> bytes:
        """See `Guesser.guess`."""
        self._cut(confidence)
        guessed, here, doubt = b"", self._trail[-1], math.inf
        while not cursor.ended:
            piece = (self._rest + guessed)[here.length :]
            if guessed or not self._ends(piece, here.weights):
                ahead = self._beyond(piece, here.weights, cursor, count - len(guessed), doubt, confidence)
                guessed += ahead.piece[len(piece) :]
                piece, cursor, doubt = ahead.piece, ahead.cursor, ahead.doubt
                if not ahead.whole or not confidence.read():
                    break
            else:
                confidence.catch_up()
            here = self._step((self._subwords.numbers[piece],), here)
        self._guessed = guessed
        return guessed

    def _cut(self, confidence: Confidence) -> None:
        """Stand before the last subword of what was decided, as the vocabulary cuts it."""
        start = self._subwords.last_word(self._rest)
        words = tuple(self._subwords.encode(self._rest[:start]))
        ids = words + tuple(self._subwords.encode(self._rest[start:])[:-1])
        self._keep([boundary for boundary in self._trail if boundary.ids == ids[: len(boundary.ids)]])
        self._reach(words, confidence)  # where a later cut can go back to
        self._reach(ids, confidence)
        self._keep([boundary for boundary in self._trail if len(boundary.ids) >= len(words)])
        self._trail = [b._replace(ids=b.ids[len(words) :], length=b.length - start) for b in self._trail]
        self._rest = self._rest[start:]

    def _reach(self, ids: tuple[int, ...], confidence: Confidence) -> None:
        """Have a boundary after `ids`, on the way that the trail goes."""
        behind = [boundary for boundary in self._trail if len(boundary.ids) <= len(ids)]
        if len(behind[-1].ids) < len(ids):
            confidence.catch_up()
            self._step(ids[len(behind[-1].ids) :], behind[-1])
            self._trail.sort(key=lambda boundary: boundary.length)

    def _ends(self, piece: bytes, weights: Weights) -> bool:
        """Whether it is likelier that a subword is `piece` than that it goes on."""
        if not piece:
            return False
        ended, nexts = self._pieces.beginning_with(piece).split(weights)
        return ended >= float(nexts.sum())

    def _step(self, ids: tuple[int, ...], here: _Boundary) -> _Boundary:
        """The boundary after reading on from one."""
        row = self._engine.fork(here.row)
        logits = self._engine.read([row], [list(ids)])[0][-1]
        length = here.length + sum(len(self._subwords.pieces[i]) for i in ids)
        self._trail.append(_Boundary(here.ids + ids, length, row, self._weights(logits)))
        return self._trail[-1]

    def _keep(self, boundaries: list[_Boundary]) -> None:
        kept = {boundary.row for boundary in boundaries}
        for boundary in self._trail:
            if boundary.row not in kept:
                self._engine.leave(boundary.row)
        self._trail = boundaries

    def close(self) -> None:
        """See `Guesser.close`."""
        self._keep([])

    def _weights(self, logits: Logits) -> Weights:
        scores = logits.take(self._pieces.ids)
        scores -= np.maximum.reduce(scores)
        return np.exp(scores, out=scores)

    def _beyond(
        self, piece: bytes, weights: Weights, cursor: Cursor, room: int, doubt: float, confidence: Confidence
    ) -> _Ahead:
        """Lengthen `piece` byte by byte, each drawn as the row will draw it, until it is likelier to be a subword than
        to go on, or has `room` bytes more, or the next byte is not worth guessing.

        The first byte follows a boundary that is itself in `doubt`.
        """
        start = len(piece)
        while not cursor.ended:
            beginning = self._pieces.beginning_with(piece)
            ended, nexts = beginning.split(weights)
            on = float(np.add.reduce(nexts))
            ends = math.log((ended + TINY) / (on + TINY))
            if beginning.whole and len(piece) > start and ends >= 0:
                return _Ahead(piece, cursor, ends, whole=True)
            byte, by = cursor.draw(beginning.nexts, nexts)
            if (by == 0 and byte not in beginning.nexts) or not confidence.byte(min(by, doubt, -ends)):
                break
            piece, cursor, doubt = piece + bytes((byte,)), cursor.after(byte), math.inf
            if len(piece) - start == room:
                break
        return _Ahead(piece, cursor, doubt, whole=False)
