"""The drafter of the MambaByte paper, https://arxiv.org/abs/2401.13660: a model over subwords, several bytes a step.

The model has learnt text as the vocabulary cuts it, word by word. So its state stands where a word began, and what was
decided before that is cut by the vocabulary. Within a word nobody knows the cut before the word has ended: " stro" may
be " st" and the beginning of "rong", or go on as " strong". The next byte's distribution is a mixture over the
*boundaries* that the word may have so far, each with the probability of the subwords up to it; a boundary is read by
the model once it has a share in what comes. A rejection costs nothing but the reads after it: the states are held.
"""

import bisect
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mambabyte.data.subwords import Subwords
from mambabyte.generation.cursor import Cursor
from mambabyte.generation.drafters import drafting_engine
from mambabyte.generation.engine import Engine, Logits, prefill
from mambabyte.generation.sorted_pieces import Beginning, SortedPieces
from mambabyte.generation.speculation import Confidence, agreement
from mambabyte.models import ByteLM, SubwordLM
from mambabyte.models.byte_lm import BYTES, DOCUMENT_START

# The part of what may come next that a boundary must have to be read.
SHARE = 0.25

Weights = NDArray[np.float32]


class Boundary(NamedTuple):
    """Between subwords: `path` are those since the first word that is held, which end at byte `end`. A row of the
    engine has read the path; `weights` are the probabilities of each subword to follow, in the vocabulary's
    lexicographic order, `chance` that of the word's subwords so far."""

    path: tuple[int, ...]
    end: int
    row: int
    weights: Weights
    chance: float


# A boundary, and the pieces that go on from it as some bytes do. Lists of them begin with the last boundary.
Outlook: TypeAlias = tuple[Boundary, Beginning]


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
        return SubwordGuesser(self._engine, self.subwords, self._pieces, text or DOCUMENT_START)


class SubwordGuesser:
    """`_rest` are the bytes decided since the last word began, and `_boundaries` those that were read in it and in what
    was guessed to follow, in order. In the first `_judged` bytes of the rest, every boundary that is worth it has been
    read."""

    def __init__(self, engine: Engine, subwords: Subwords, pieces: SortedPieces, text: bytes) -> None:
        self._engine, self._subwords, self._pieces = engine, subwords, pieces
        start = subwords.last_word(text)
        context = prefill(engine.model, subwords.encode(text[:start] or DOCUMENT_START), outputs=len(subwords))
        first = self._probabilities(context.logits[0].cpu().numpy())
        self._boundaries = [Boundary((), 0, engine.join(context), first, 1.0)]
        self._rest, self._judged, self._guessed = text[start:], 0, b""

    def read(self, data: bytes) -> None:
        """See `Guesser.read`."""
        agreed = len(self._rest) + agreement(self._guessed, data)
        self._rest, self._guessed = self._rest + data, b""
        self._keep([boundary for boundary in self._boundaries if boundary.end <= agreed])

    def guess(self, count: int, cursor: Cursor, confidence: Confidence) -> bytes:
        """See `Guesser.guess`."""
        self._catch_up(confidence)
        text, decided, word = self._rest, len(self._rest), 0  # the last word begins at byte `word`
        outlooks = self._outlooks(text)
        weight: float | None = None  # of all that may come next, once it is known
        while outlooks and len(text) - decided < count and not cursor.ended:
            if not self._expand(outlooks, text, weight, confidence, guessing=len(text) > decided):
                break
            weights = mixture(outlooks)
            byte, by = cursor.draw(weights)
            if byte is None or not confidence.byte(by):
                break
            grown = text + bytes((byte,))
            weight = outlooks[0][0].chance * weights.item(byte)
            outlooks = narrowed(outlooks, byte)
            begins = word + self._subwords.last_word(grown[word:])
            if begins > word:
                outlooks = [(here._replace(chance=1.0), pieces) for here, pieces in outlooks if here.end == begins]
                word, weight = begins, None
            if not outlooks:  # a word begins where no boundary has been read
                break
            text, cursor = grown, cursor.after(byte)
        self._guessed = text[decided:]
        return self._guessed

    def close(self) -> None:
        """See `Guesser.close`."""
        self._keep([])

    def _catch_up(self, confidence: Confidence) -> None:
        """Cut the words that have ended as the vocabulary does, and let the last one begin anew."""
        start = self._subwords.last_word(self._rest)
        if start == 0:
            for length in range(self._judged + 1, len(self._rest)):
                outlooks, byte = self._outlooks(self._rest[:length]), self._rest[length]
                ended = sum(here.chance * pieces.ended(here.weights) for here, pieces in outlooks)
                weight = ended + weigh(narrowed(outlooks, byte))
                self._expand(outlooks, self._rest[:length], weight, confidence)
                self._judged = length
            return
        path = tuple(self._subwords.encode(self._rest[:start]))
        behind = [boundary for boundary in self._boundaries if boundary.path == path[: len(boundary.path)]]
        last = max(behind, key=lambda boundary: boundary.end)
        if last.path != path:
            confidence.catch_up()
            last = self._step(last, path[len(last.path) :], start, 1.0)
        self._rest, self._judged = self._rest[start:], 0
        self._keep([last._replace(path=(), end=0, chance=1.0)])
        self._catch_up(confidence)

    def _expand(
        self, outlooks: list[Outlook], text: bytes, weight: float | None, confidence: Confidence, guessing: bool = False
    ) -> bool:
        """Read the boundary at the text's end if it has a share in what comes next, whose weight is summed up if it is
        None, and add its outlook. Returns False if guessing on is not worth that read."""
        if not outlooks or outlooks[0][0].end == len(text):
            return True
        ends = [here.chance * pieces.ended(here.weights) for here, pieces in outlooks]
        chance = sum(ends)
        if chance == 0 or chance <= SHARE * (weigh(outlooks) if weight is None else weight):
            return True
        if not guessing:
            confidence.catch_up()
        elif not confidence.read():
            return False
        best, _ = outlooks[ends.index(max(ends))]
        read = self._step(best, (self._subwords.numbers[text[best.end :]],), len(text), chance)
        outlooks.insert(0, (read, self._pieces.beginnings[b""]))
        return True

    def _outlooks(self, text: bytes) -> list[Outlook]:
        """Of the boundaries in the text those that pieces go on from as it does."""
        begin = self._pieces.beginnings.get
        return [
            (here, pieces)
            for here in reversed(self._boundaries)
            if here.end <= len(text) and (pieces := begin(text[here.end :]))
        ]

    def _step(self, here: Boundary, ids: tuple[int, ...], end: int, chance: float) -> Boundary:
        """The boundary after reading on from one."""
        row = self._engine.fork(here.row)
        logits = self._engine.read([row], [ids])[0][-1]
        read = Boundary(here.path + ids, end, row, self._probabilities(logits), chance)
        bisect.insort(self._boundaries, read, key=lambda boundary: boundary.end)
        return read

    def _keep(self, boundaries: list[Boundary]) -> None:
        kept = {boundary.row for boundary in boundaries}
        for row in {boundary.row for boundary in self._boundaries} - kept:
            self._engine.leave(row)
        self._boundaries = boundaries

    def _probabilities(self, logits: Logits) -> Weights:
        scores = logits.take(self._pieces.ids)
        scores -= scores[scores.argmax()]
        weights = np.exp(scores, out=scores)
        weights /= np.add.reduce(weights)
        return weights


def mixture(outlooks: list[Outlook]) -> Weights:
    """(256,) the weight of each byte to come next, as a multiple of the last boundary's chance."""
    total = np.zeros(BYTES, np.float32)
    (last, pieces), *others = outlooks
    # most bytes go on from the last boundary, and numpy assigns in a quarter of the time that it takes to add
    total[pieces.nexts] = pieces.by_next(last.weights)
    for here, pieces in others:
        total[pieces.nexts] += here.chance / last.chance * pieces.by_next(here.weights)
    return total


def narrowed(outlooks: list[Outlook], byte: int) -> list[Outlook]:
    """The outlooks after one more byte."""
    return [(here, longer) for here, pieces in outlooks if (longer := pieces.after.get(byte))]


def weigh(outlooks: list[Outlook]) -> float:
    """The weight of all that may come."""
    return sum(here.chance * np.add.reduce(here.weights[pieces.where]) for here, pieces in outlooks)
