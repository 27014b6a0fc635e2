"""The bits of every byte under a model of subwords: -log2 p of each subword that a text is cut into."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mambabyte.evaluation.scoring import Bits, Documents, check_finite
from mambabyte.models import ByteLMState, SubwordLM
from mambabyte.models.byte_lm import DOCUMENT_START

PIECE = 1 << 14  # bytes that are cut at once, so that a document of any size needs little memory
POSITIONS = 4096  # subwords read at once, at least: 64 MB of logits for 4,096 of them


@torch.no_grad()
def score(drafter: SubwordLM, corpus: Documents) -> Iterator[Bits]:
    """As `mambabyte.evaluation.scoring.score` for the plan "stream": every byte once, documents in order.

    The bits of a subword stand at its last byte; the bytes before it have none of their own. They are those of the one
    way in which the vocabulary cuts the text, not of all ways to spell it, so they bound the text's true price from
    above. A document's first subword is scored after a newline from the zero state.
    """
    state: ByteLMState | None = None
    was_training = drafter.model.training
    drafter.model.eval()
    try:
        for page in _pages(drafter, corpus):
            bits, state = _bits(drafter, page, state)
            for piece in page:
                yield piece.bits(bits[: len(piece.ids)], drafter, corpus)
                bits = bits[len(piece.ids) :]
    finally:
        drafter.model.train(was_training)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Consecutive subwords of one document from its byte `start`, and the subword before them."""

    document: int
    start: int
    before: int
    ids: list[int]

    def bits(self, of_ids: NDArray[np.float64], drafter: SubwordLM, corpus: Documents) -> Bits:
        ends = np.cumsum([len(drafter.subwords.pieces[i]) for i in self.ids])
        bits = np.zeros(ends[-1])
        bits[ends - 1] = of_ids
        return check_finite(Bits(self.document, self.start, bits), corpus)


def _pages(drafter: SubwordLM, corpus: Documents) -> Iterator[list[_Piece]]:
    """Pieces of documents, as many as are read at once."""
    page: list[_Piece] = []
    for piece in _pieces(drafter, corpus):
        page.append(piece)
        if sum(len(piece.ids) for piece in page) >= POSITIONS:
            yield page
            page = []
    if page:
        yield page


def _pieces(drafter: SubwordLM, corpus: Documents) -> Iterator[_Piece]:
    newline = drafter.subwords.numbers[DOCUMENT_START]
    offsets = corpus.offsets.tolist()
    for document, (first, last) in enumerate(itertools.pairwise(offsets)):
        before = newline
        for start in range(first, last, PIECE):
            ids = drafter.subwords.encode(corpus.read(start, min(start + PIECE, last)).tobytes())
            yield _Piece(document, start - first, before, ids)
            before = ids[-1]


def _bits(drafter: SubwordLM, page: list[_Piece], state: ByteLMState | None) -> tuple[NDArray[np.float64], ByteLMState]:
    """-log2 p of each subword of the page, and the state before the last of them has been read."""
    device = drafter.model.embedding.weight.device
    inputs = torch.tensor([i for piece in page for i in (piece.before, *piece.ids[:-1])], device=device)
    targets = torch.tensor([i for piece in page for i in piece.ids], device=device)
    starts = np.cumsum([0, *(len(piece.ids) for piece in page[:-1])])
    resets = torch.zeros(len(inputs), dtype=torch.bool)
    resets[[int(at) for at, piece in zip(starts, page, strict=True) if piece.start == 0]] = True
    logits, state = drafter.model(inputs[None], state, resets=resets[None].to(device) if resets.any() else None)
    wide = torch.promote_types(logits.dtype, torch.float32)
    nats = F.cross_entropy(logits[0].to(wide), targets, reduction="none")
    return (nats.double() / math.log(2)).cpu().numpy(), state
