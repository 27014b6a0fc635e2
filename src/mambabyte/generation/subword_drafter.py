"""The drafter of the MambaByte paper, https://arxiv.org/abs/2401.13660: a model over subwords, several bytes a step.

Text never has to be tokenised again. The model's state stands at a subword boundary; the bytes decided beyond it,
the *rest*, wait, and only narrow down the next subword to those that agree with them. So a rejection in the middle of
a word costs nothing but the steps after the boundary before it, whose states are held.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambabyte.data.subwords import Subwords
from mambabyte.generation.cursor import TINY, Cursor
from mambabyte.generation.drafters import drafting_engine
from mambabyte.generation.engine import Engine, Logits, prefill
from mambabyte.generation.sorted_pieces import SortedPieces
from mambabyte.generation.speculation import Confidence, agreement
from mambabyte.models import ByteLM, SubwordLM

TOKENISE = 24  # a longer rest is cut into subwords by the vocabulary instead of by the model

Weights = NDArray[np.float32]


class _Boundary(NamedTuple):
    """After `length` bytes of the rest and the guess: a row of the engine that has read them, and weights in proportion
    to the probability of each subword to follow, in the vocabulary's lexicographic order."""

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
    """Walks from boundary to boundary; `_trail` holds those of the last guess."""

    def __init__(self, engine: Engine, subwords: Subwords, pieces: SortedPieces, text: bytes) -> None:
        self._engine, self._subwords, self._pieces = engine, subwords, pieces
        ids = subwords.encode(text)
        context = prefill(engine.model, ids[:-1] or ids, outputs=len(subwords))
        self._trail = [_Boundary(0, engine.join(context), self._weights(context.logits[0].cpu().numpy()))]
        self._rest = subwords.pieces[ids[-1]] if len(ids) > 1 else b""  # the last subword may be unfinished
        self._guessed = b""

    def read(self, data: bytes) -> None:
        """See `Guesser.read`."""
        found = self._rest + data
        agree = len(self._rest) + agreement(self._guessed, data)
        boundary = self._trail.pop(max(i for i, b in enumerate(self._trail) if b.length <= agree))
        self.close()
        self._rest, self._guessed = found[boundary.length :], b""
        self._trail = [boundary._replace(length=0)]

    def guess(self, count: int, cursor: Cursor, confidence: Confidence) -> bytes:
        """See `Guesser.guess`."""
        if len(self._rest) > TOKENISE:
            confidence.catch_up()
            self._tokenise()
        guessed, here, doubt = b"", self._trail[-1], math.inf
        while not cursor.ended:
            rest = (self._rest + guessed)[here.length :]
            piece = self._within(rest, here.weights)
            if piece is not None and not guessed:
                confidence.catch_up()
            else:
                if piece is None:
                    ahead = self._beyond(rest, here.weights, cursor, count - len(guessed), doubt, confidence)
                    piece, cursor, doubt = ahead.piece, ahead.cursor, ahead.doubt
                    guessed += piece[len(rest) :]
                    if not ahead.whole:
                        break
                if not confidence.read():
                    break
            here = self._step(piece, here)
            self._trail.append(here)
        self._guessed = guessed
        return guessed

    def close(self) -> None:
        """See `Guesser.close`."""
        for boundary in self._trail:
            self._engine.leave(boundary.row)
        self._trail = []

    def _tokenise(self) -> None:
        """Read all of the rest but its last subword, as the vocabulary cuts it."""
        *ids, last = self._subwords.encode(self._rest)
        row = self._trail[-1].row
        self._trail = [_Boundary(0, row, self._weights(self._engine.read([row], [ids])[0][-1]))]
        self._rest = self._subwords.pieces[last]

    def _step(self, piece: bytes, here: _Boundary) -> _Boundary:
        row = self._engine.fork(here.row)
        logits = self._engine.read([row], [[self._subwords.numbers[piece]]])[0][-1]
        return _Boundary(here.length + len(piece), row, self._weights(logits))

    def _weights(self, logits: Logits) -> Weights:
        scores = logits.take(self._pieces.ids)
        scores -= np.maximum.reduce(scores)
        return np.exp(scores, out=scores)

    def _within(self, rest: bytes, weights: Weights) -> bytes | None:
        """The likeliest subword that is a beginning of `rest`, if likelier than all that go beyond it."""
        if not rest:
            return None
        best, likeliest = rest[:1], -1.0
        for length in range(1, len(rest) + 1):
            beginning = self._pieces.beginning_with(rest[:length])
            if beginning.whole and weights[beginning.where.start] >= likeliest:
                best, likeliest = rest[:length], weights[beginning.where.start]
            if not len(beginning.nexts):
                break
        _, nexts = self._pieces.beginning_with(rest).split(weights)
        return best if likeliest >= nexts.sum() else None

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
