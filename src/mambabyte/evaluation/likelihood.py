"""log p(continuation | context) for many pairs: each context is read once, whatever the number of its continuations."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mambabyte.evaluation.scoring import POSITIONS
from mambabyte.models.byte_lm import DOCUMENT_START, ByteLM, ByteLMState

ROWS = 16  # contexts that are read side by side


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Natural log of p(continuation | context), and whether each of its bytes was the most likely one."""

    log_probability: float
    is_greedy: bool


@torch.no_grad()
def log_likelihoods(model: ByteLM, pairs: Sequence[tuple[bytes, bytes]], *, rows: int = ROWS) -> list[Likelihood]:
    """The likelihood of each (context, continuation), in their order.

    An empty context is one newline, as at the beginning of a document; an empty continuation has log p = 0. Pairs that
    share a context share the reading of it. Contexts of unequal length stand side by side behind a reset, so that a
    pair gives what it gives alone; the memory is that of `rows` states and 8192 positions, however long the texts are.
    """
    choices: dict[bytes, list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        choices.setdefault(context or DOCUMENT_START, []).append(i)
    results: dict[int, Likelihood] = {}
    for contexts in _batched(sorted(choices, key=len), rows):
        logits, state = _read(model, contexts)
        work = [(row, i) for row, context in enumerate(contexts) for i in choices[context]]
        work.sort(key=lambda item: len(pairs[item[1]][1]))
        for part in _batched(work, rows):
            index = [row for row, _ in part]
            continuations = [pairs[i][1] for _, i in part]
            scores = _score(model, logits[index], state.rows(index), continuations)
            results.update(zip((i for _, i in part), scores, strict=True))
    return [results[i] for i in range(len(pairs))]


def _read(model: ByteLM, contexts: Sequence[bytes]) -> tuple[Tensor, ByteLMState]:
    """Logits (rows, V) of the byte after each context, and the state there.

    The texts end together: those that are shorter begin later, with a reset, behind bytes that nothing remembers.
    """
    device = model.embedding.weight.device
    longest = max(map(len, contexts))
    ids = torch.zeros(len(contexts), longest, dtype=torch.uint8)
    resets = torch.zeros(len(contexts), longest, dtype=torch.bool)
    for row, context in enumerate(contexts):
        begin = longest - len(context)
        ids[row, begin:] = torch.from_numpy(np.frombuffer(context, np.uint8).copy())
        resets[row, begin] = True
    state = model.init_state(len(contexts))
    for columns in _chunks(longest, len(contexts)):
        hidden, state = model.hidden(ids[:, columns].to(device), state, resets=resets[:, columns].to(device))
    return model.head(hidden[:, -1]), state


def _score(model: ByteLM, logits: Tensor, state: ByteLMState, continuations: Sequence[bytes]) -> Iterator[Likelihood]:
    """The likelihood of one continuation a row, from the logits (rows, V) of its first byte and the state before it."""
    device = logits.device
    lengths = torch.tensor([len(text) for text in continuations])
    ids = torch.zeros(len(continuations), int(lengths.max()), dtype=torch.int64)
    for row, text in enumerate(continuations):
        ids[row, : len(text)] = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    counts = (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)
    ids = ids.to(device)
    total = torch.zeros(len(continuations), dtype=torch.float64, device=device)
    greedy = torch.ones(len(continuations), dtype=torch.bool, device=device)
    for columns in _chunks(ids.shape[1], len(continuations)):
        after, state = model(ids[:, columns], state)
        predictions = torch.cat([logits[:, None], after[:, :-1]], dim=1)
        if predictions.dtype != torch.float64:
            predictions = predictions.float()
        here, targets = counts[:, columns], ids[:, columns, None]
        log_p = torch.log_softmax(predictions, dim=-1).gather(-1, targets)[..., 0]
        total += torch.where(here, log_p, 0).sum(dim=1, dtype=torch.float64)
        greedy &= ((predictions.argmax(dim=-1, keepdim=True) == targets)[..., 0] | ~here).all(dim=1)
        logits = after[:, -1]
    return map(Likelihood, total.tolist(), greedy.tolist())


def _chunks(length: int, rows: int) -> Iterator[slice]:
    size = max(1, POSITIONS // rows)
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _batched(items: Sequence, size: int) -> Iterator[list]:
    iterator = iter(items)
    return iter(lambda: list(itertools.islice(iterator, size)), [])
