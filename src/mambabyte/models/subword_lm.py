"""A model of subwords with its vocabulary: what drafts for a byte model."""

import dataclasses

from mambabyte.data.subwords import Subwords
from mambabyte.models.byte_lm import ByteLM


@dataclasses.dataclass(frozen=True)
class SubwordLM:
    """`model` has an id for each of `subwords`. Raises ValueError if it has fewer.

    It is no model of bytes: it guesses for one (`generate(model, prompt, drafter=...)`), and its bits per byte are
    those of the subwords that it reads a text as.
    """

    model: ByteLM
    subwords: Subwords

    def __post_init__(self) -> None:
        known, wanted = self.model.config.vocab_size, len(self.subwords)
        if known < wanted:
            raise ValueError(f"the model knows {known} ids, but there are {wanted} subwords")
