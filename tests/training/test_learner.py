import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mambabyte.data import IGNORE, Batch
from mambabyte.models import ByteLM
from mambabyte.training import optimiser as adamw
from mambabyte.training.learner import Learner
from mambabyte.training.memory import checkpointed
from tests.training.small import MODEL

ROWS, LENGTH = 5, 40


def learner(micro_batch: int = ROWS, carry: bool = False, clip: float = 1e9) -> Learner:
    model = _seeded()
    optimiser = adamw.build(model, learning_rate=1e-2, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.1)
    return Learner(model, optimiser, micro_batch=micro_batch, clip=clip, carry=carry)


def _seeded() -> ByteLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ByteLM(MODEL)


def batch(ids: Tensor, continues: bool = False, *, ignored: float = 0.0) -> Batch:
    """Windows of `ids` (rows, length + 1)."""
    targets = ids[:, 1:].long()
    targets = targets.masked_fill(torch.rand(targets.shape) < ignored, IGNORE)
    flags = torch.full((len(ids),), continues)
    resets = torch.zeros(targets.shape, dtype=torch.bool)
    return Batch(ids[:, :-1].contiguous(), targets, resets, flags, (targets != IGNORE).sum(1))


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield


def random_ids(length: int = LENGTH + 1) -> Tensor:
    return torch.randint(0, 256, (ROWS, length), dtype=torch.uint8)


def gradients_of(learner: Learner, windows: Batch) -> list[Tensor]:
    """The gradient of one step, by way of a hook on the optimiser."""
    seen: list[Tensor] = []
    learner.optimiser.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in learner.model.parameters()))
    learner.step(windows, 1e-2)
    return seen


@pytest.mark.parametrize("micro_batch", [1, 2, 3, ROWS])
def test_any_micro_batch_gives_the_gradient_of_the_whole_batch(micro_batch: int) -> None:
    windows = batch(random_ids(), ignored=0.3)
    whole, split = learner(ROWS), learner(micro_batch)
    for a, b in zip(gradients_of(whole, windows), gradients_of(split, windows), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_loss_is_nats_of_scored_targets_only() -> None:
    windows = batch(random_ids(), ignored=0.5)
    student = learner()
    with torch.no_grad():
        logits, _ = student.model(windows.inputs)
    scored = windows.targets != IGNORE
    expected = -logits.log_softmax(-1)[scored].gather(-1, windows.targets[scored][:, None]).sum()
    step = student.step(windows, 1e-2)
    assert step is not None
    assert step.bytes == int(scored.sum())
    torch.testing.assert_close(step.nats, expected)


def test_batch_without_targets_changes_no_weight_but_decay() -> None:
    ids = random_ids()
    targets = torch.full((ROWS, LENGTH), IGNORE)
    nothing = dataclasses.replace(batch(ids), targets=targets, bytes=torch.zeros(ROWS, dtype=torch.int64))
    step = learner().step(nothing, 1e-2)
    assert step is not None
    assert (step.bytes, float(step.nats), float(step.gradient_norm)) == (0, 0.0, 0.0)


def test_clip_bounds_the_gradient_and_reports_it_unclipped() -> None:
    windows, clip = batch(random_ids()), 1e-3
    free = gradients_of(learner(), windows)
    clipped = learner(clip=clip)
    gradients = gradients_of(clipped, windows)
    norm = torch.stack([g.norm() for g in free]).norm()
    assert norm > clip
    torch.testing.assert_close(torch.stack([g.norm() for g in gradients]).norm(), torch.tensor(clip), rtol=1e-3, atol=0)
    step = learner(clip=clip).step(windows, 1e-2)
    assert step is not None
    torch.testing.assert_close(step.gradient_norm, norm)


@pytest.mark.parametrize("micro_batch", [2, ROWS])
def test_carried_state_is_that_of_the_bytes_read_so_far(micro_batch: int) -> None:
    ids = random_ids(2 * LENGTH + 1)
    student = learner(micro_batch, carry=True)
    student.step(batch(ids[:, : LENGTH + 1]), 0.0)
    first = student.state
    assert first is not None
    student.step(batch(ids[:, LENGTH:], continues=True), 0.0)
    with torch.no_grad():
        _, expected = student.model(ids[:, :-1])
    assert student.state is not None
    for (name, a), (_, b) in zip(student.state.named_tensors(), expected.named_tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
        assert not a.requires_grad


def test_row_that_does_not_continue_starts_from_nothing() -> None:
    ids = random_ids(2 * LENGTH + 1)
    fresh, student = learner(carry=True), learner(carry=True)
    student.step(batch(ids[:, : LENGTH + 1]), 0.0)
    windows = batch(ids[:, LENGTH:])
    mixed = dataclasses.replace(windows, continues=torch.tensor([True, False, True, False, False]))
    student.step(mixed, 0.0)
    fresh.step(windows, 0.0)
    assert student.state is not None
    assert fresh.state is not None
    pairs = list(zip(student.state.named_tensors(), fresh.state.named_tensors(), strict=True))
    for (_, a), (_, b) in pairs:
        assert torch.equal(a[~mixed.continues], b[~mixed.continues])
    (_, a), (_, b) = pairs[-1]
    assert all(not torch.equal(a[row], b[row]) for row in mixed.continues.nonzero())
    assert not mixed.resets.any(), "the batch itself is not changed"


def test_abandoned_step_leaves_no_trace() -> None:
    windows = batch(random_ids())
    student, witness = learner(2, carry=True), learner(2, carry=True)
    asked = iter([False, False, True])
    assert student.step(windows, 1e-2, abandon=lambda: next(asked)) is None
    assert student.state is None
    student.step(windows, 1e-2)
    witness.step(windows, 1e-2)
    for a, b in zip(student.model.parameters(), witness.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_recomputed_activations_give_the_same_gradients() -> None:
    windows = batch(random_ids())
    plain, frugal = learner(), learner()
    with checkpointed(frugal.model):
        recomputed = gradients_of(frugal, windows)
    for a, b in zip(gradients_of(plain, windows), recomputed, strict=True):
        assert torch.equal(a, b)
    assert all("forward" not in vars(unit) for unit in frugal.model.layers)
