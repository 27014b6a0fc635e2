"""The paper's recipe, and how it shrinks to a small model on a small machine.

The paper (https://arxiv.org/abs/2401.13660) trains 353M parameters with 48 sequences of 8,192 bytes a step, a peak
learning rate of 4e-4 and 31.5 GB in all, 90 bytes a parameter. A model of a hundredth of that size learns more from a
given number of bytes in many small steps at a higher rate; docs/log.md has the sweep behind the small sizes.
"""

import dataclasses

import torch

from mambabyte.models import ByteLMConfig, model_cost
from mambabyte.training import memory, precision
from mambabyte.training.config import TrainConfig
from mambabyte.training.schedule import Budget

PAPER_PARAMETERS = 353_000_000
BYTES_PER_PARAMETER = 90
HIGHEST_RATE = 6e-3
BYTES_PER_SUBWORD = 4  # roughly, so that a drafter sees as many ids in a context as a byte model of its size
GPU_ROOM = 0.75  # of all memory, for activations; not of what is free, so that a resumed run splits a batch alike
CPU_ROOM = 4 << 30  # for activations; larger micro-batches gain nothing there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The values that a TrainConfig may leave open."""

    batch: int
    context: int
    micro_batch: int
    checkpoint_activations: bool
    learning_rate: float
    minutes: float | None
    steps: int | None
    bytes: int | None

    @property
    def budget(self) -> Budget:
        """The limits of the run."""
        return Budget(minutes=self.minutes, steps=self.steps, bytes=self.bytes)


def choose(config: TrainConfig, architecture: ByteLMConfig, device: torch.device, corpus_bytes: int) -> Recipe:
    """Every open value of `config` for a model of `architecture` on `device`; what the config says stays as it is."""
    parameters = model_cost(architecture).parameters
    batch, context = _geometry(parameters)
    context *= 1 if config.tokenizer is None else BYTES_PER_SUBWORD
    batch, context = config.batch or batch, config.context or min(context, max(corpus_bytes, 2))
    at_once, recompute = _memory(config, architecture, context, device)
    unlimited = config.minutes is None and config.steps is None and config.bytes is None
    return Recipe(
        batch=batch,
        context=context,
        micro_batch=min(batch, config.micro_batch or _even(batch, at_once)),
        checkpoint_activations=recompute,
        learning_rate=config.learning_rate or _learning_rate(parameters),
        minutes=config.minutes,
        steps=config.steps,
        bytes=BYTES_PER_PARAMETER * parameters if unlimited else config.bytes,
    )


def _geometry(parameters: int) -> tuple[int, int]:
    """(batch, context): the paper's from 200M parameters on, and for smaller models fewer bytes a step."""
    for at_least, geometry in ((200_000_000, (48, 8192)), (50_000_000, (32, 4096)), (10_000_000, (16, 1024))):
        if parameters >= at_least:
            return geometry
    return 8, 512


def _learning_rate(parameters: int) -> float:
    """The paper's 4e-4 at 353M parameters, higher by the square root for smaller models up to `HIGHEST_RATE`."""
    return float(f"{min(HIGHEST_RATE, 4e-4 * (PAPER_PARAMETERS / parameters) ** 0.5):.1e}")


def _memory(config: TrainConfig, architecture: ByteLMConfig, context: int, device: torch.device) -> tuple[int, bool]:
    """(sequences at once, whether to recompute activations): recomputing only where one sequence would not fit."""
    dtype, _ = precision.choose_dtype(config.precision, device)
    room = int(GPU_ROOM * torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else CPU_ROOM
    kept, recomputed = (room // (context * memory.bytes_per_position(architecture, dtype, r)) for r in (False, True))
    recompute = config.checkpoint_activations
    if recompute is None:
        recompute = kept < 1
    return max(1, recomputed if recompute else kept), recompute


def _even(batch: int, at_once: int) -> int:
    """The micro-batch of at most `at_once` rows that splits `batch` into equal parts, or nearly."""
    return -(-batch // -(-batch // at_once))
