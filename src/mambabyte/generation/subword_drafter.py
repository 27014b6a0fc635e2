"""The drafter of the MambaByte paper, https://arxiv.org/abs/2401.13660: a model over subwords, several bytes a step.

Text never has to be tokenised again. The model's state stands at a subword boundary; the bytes decided beyond it,
the *rest*, wait, and only narrow down the next subword to those that agree with them. So a rejection in the middle of
a word costs nothing but the steps after the boundary before it, whose states are held.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from mambabyte.data.subwords import Subwords
from mambabyte.generation.cursor import Cursor
from mambabyte.generation.engine import Engine, Logits, open_engine, prefill
from mambabyte.generation.sorted_pieces import SortedPieces
from mambabyte.models import ByteLM

TOKENISE = 24  # a longer rest is cut into subwords by the vocabulary instead of by the model


@dataclasses.dataclass(frozen=True)
class _Boundary:
    """After `length` bytes of the rest and the guess: a row of the engine that has read them, and the probability of
    each subword to follow, in the vocabulary's lexicographic order."""

    length: int
    row: int
    weights: NDArray[np.float64]


class SubwordDrafter:
    """A `Drafter` whose model has one id for each of the vocabulary's subwords."""

    def __init__(self, model: ByteLM, subwords: Subwords, cost: float = 0.1) -> None:
        if model.config.vocab_size < len(subwords):
            raise ValueError(f"the model knows {model.config.vocab_size} ids, but there are {len(subwords)} subwords")
        self.subwords, self.cost = subwords, cost
        self._pieces = SortedPieces(subwords.pieces)
        self._engine = open_engine(model, outputs=len(subwords))

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
        expected, found = self._rest + self._guessed, self._rest + data
        agree = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
        agree = min(len(expected), len(found)) if agree is None else agree
        boundary = self._trail.pop(max(i for i, b in enumerate(self._trail) if b.length <= agree))
        self.close()
        self._rest, self._guessed = found[boundary.length :], b""
        self._trail = [dataclasses.replace(boundary, length=0)]

    def guess(self, count: int, cursor: Cursor) -> bytes:
        """See `Guesser.guess`."""
        if len(self._rest) > TOKENISE:
            *ids, last = self._subwords.encode(self._rest)
            row = self._trail[-1].row
            self._trail = [_Boundary(0, row, self._weights(self._engine.read([row], [ids])[0][-1]))]
            self._rest = self._subwords.pieces[last]
        guessed, here = b"", self._trail[-1]
        while len(guessed) < count and not cursor.ended:
            rest = (self._rest + guessed)[here.length :]
            piece = self._within(rest, here.weights)
            if piece is None:
                piece, cursor = self._beyond(rest, here.weights, cursor, count - len(guessed))
                guessed += piece[len(rest) :]
            if len(guessed) == count or piece not in self._subwords.numbers:
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

    def _step(self, piece: bytes, here: _Boundary) -> _Boundary:
        row = self._engine.fork(here.row)
        logits = self._engine.read([row], [[self._subwords.numbers[piece]]])[0][-1]
        return _Boundary(here.length + len(piece), row, self._weights(logits))

    def _weights(self, logits: Logits) -> NDArray[np.float64]:
        scores = logits.astype(np.float64)[self._pieces.ids]
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()

    def _within(self, rest: bytes, weights: NDArray[np.float64]) -> bytes | None:
        """The likeliest subword that is a beginning of `rest`, if likelier than all that go beyond it."""
        pieces = self._pieces
        beyond, best, likeliest = weights[pieces.beginning_with(rest)].sum() if rest else np.inf, None, 0.0
        for length in range(1, len(rest) + 1):
            same = pieces.beginning_with(rest[:length])
            if same.start < same.stop and pieces.pieces[same.start] == rest[:length]:
                weight = weights[same.start]
                if length == len(rest):
                    beyond -= weight
                if weight >= likeliest:
                    best, likeliest = rest[:length], weight
        return best if likeliest >= beyond else None

    def _beyond(self, piece: bytes, weights: NDArray[np.float64], cursor: Cursor, room: int) -> tuple[bytes, Cursor]:
        """Lengthen `piece` byte by byte, each drawn as the row will draw it, until it is likelier to be a subword
        than to go on, or has `room` bytes more."""
        pieces, start = self._pieces, len(piece)
        while len(piece) - start < room and not cursor.ended:
            next_bytes = pieces.next_bytes(pieces.beginning_with(piece), len(piece), weights)
            on, ended = next_bytes[:256], next_bytes[256]
            if len(piece) > start and ended >= on.sum():
                break
            with np.errstate(divide="ignore"):
                byte = cursor.choose(np.maximum(np.log(on), -1e4).astype(np.float32))
            if on[byte] == 0:  # a constraint wants what no subword has here
                return piece, cursor
            piece, cursor = piece + bytes((byte,)), cursor.after(byte)
        return piece, cursor
