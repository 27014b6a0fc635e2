"""One training step: forward and backward over micro-batches, one clipped AdamW update, the state carried on."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mambabyte.data import Batch
from mambabyte.layers import State
from mambabyte.models import ByteLM, ByteLMState
from mambabyte.training import optimiser as adamw
from mambabyte.training.loss import scored, summed_nats


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step cost: nats and gradient_norm are scalars on the device, bytes what the scored targets spell."""

    nats: Tensor
    gradient_norm: Tensor
    bytes: int


class Learner:
    """All that training changes: the weights, the optimiser's moments and, with `carry`, the state of every row."""

    def __init__(
        self, model: ByteLM, optimiser: torch.optim.Optimizer, *, micro_batch: int, clip: float, carry: bool
    ) -> None:
        self.model = model
        self.optimiser = optimiser
        self.state: ByteLMState | None = None
        self._parameters = list(model.parameters())
        self.device = self._parameters[0].device
        self._micro_batch = micro_batch
        self._clip = clip
        self._carry = carry

    def step(self, batch: Batch, learning_rate: float, abandon: Callable[[], bool] = lambda: False) -> Step | None:
        """Learn from one batch; the loss is the mean over its scored targets, whatever the micro-batch.

        `abandon` is asked before every micro-batch; when it says yes, nothing has changed and the answer is None.
        """
        count = scored(batch.targets)
        nats, states = [], []
        for rows in self._splits(len(batch.inputs)):
            if abandon():
                self.optimiser.zero_grad(set_to_none=True)
                return None
            summed, state = self._forward(batch.rows(rows), None if self.state is None else self.state.rows(rows))
            (summed / max(count, 1)).backward()  # type: ignore[no-untyped-call]
            nats.append(summed.detach())
            if self._carry:
                states.append(state.detach())
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip, foreach=True)
        adamw.set_learning_rate(self.optimiser, learning_rate)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.model.trained_dtype = self.model.compute_dtype
        self.state = _join(states)
        return Step(torch.stack(nats).sum(), norm, int(batch.bytes.sum()))

    def _forward(self, batch: Batch, state: ByteLMState | None) -> tuple[Tensor, ByteLMState]:
        """Summed nats of some rows, and their state after them."""
        resets = batch.resets
        if state is not None:  # a row that does not read on drops the state, as at the first byte of a document
            resets = resets.clone()
            resets[:, 0] |= ~batch.continues
        inputs, targets, resets = (_to(part, self.device) for part in (batch.inputs, batch.targets, resets))
        logits, state = self.model(inputs, state, resets=resets)
        return summed_nats(logits, targets), state

    def _splits(self, rows: int) -> Iterator[slice]:
        for start in range(0, rows, self._micro_batch):
            yield slice(start, min(start + self._micro_batch, rows))


def _join(states: list[ByteLMState]) -> ByteLMState | None:
    if not states:
        return None
    if len(states) == 1:
        return states[0]
    joined = State.join(states)
    assert isinstance(joined, ByteLMState)
    return joined


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
