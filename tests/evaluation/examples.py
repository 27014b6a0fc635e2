"""A small model and corpora of a few bytes, shared by the tests of evaluation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from mambabyte.data import Corpus
from mambabyte.evaluation.plan import Plan
from mambabyte.evaluation.scoring import score
from mambabyte.layers import MambaConfig
from mambabyte.models import ByteLM, ByteLMConfig

CONFIG = ByteLMConfig(d_model=12, layers={"mamba": MambaConfig(d_state=4)}, pattern=("mamba", "mamba"))


def small_model() -> ByteLM:
    """Random and float64; sharp enough that bytes differ by many bits and that what was read long ago matters."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = ByteLM(CONFIG).double()
    with torch.no_grad():
        model.head.weight.mul_(8)
        model.embedding.weight.mul_(20)
    return model


@contextmanager
def corpus_of(documents: Sequence[bytes]) -> Iterator[Corpus]:
    """A corpus of these documents, one file each."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i:03d}") for i in range(len(documents))]
        for path, document in zip(paths, documents, strict=True):
            path.write_bytes(document)
        yield Corpus.open(paths)


def bits_of(model: ByteLM, documents: Sequence[bytes], plan: Plan, **options: int) -> list[np.ndarray]:
    """The bits of every byte of each document; NaN where a byte is not scored, an error where it is twice."""
    bits = [np.full(len(document), np.nan) for document in documents]
    with corpus_of(documents) as corpus:
        for piece in score(model, corpus, plan, **options):
            here = bits[piece.document][piece.start : piece.start + len(piece.bits)]
            assert np.isnan(here).all()
            here[:] = piece.bits
    return bits
