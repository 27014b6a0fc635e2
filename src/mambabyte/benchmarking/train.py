"""A whole training step: forward, cross-entropy, backward, clipping and AdamW, over random bytes."""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mambabyte.benchmarking import conv, floors, peers, scan
from mambabyte.benchmarking.floors import Work
from mambabyte.benchmarking.operators import PEER_ERRORS, expect, sentence
from mambabyte.benchmarking.report import OURS, Report
from mambabyte.benchmarking.timing import compare
from mambabyte.models import ByteLM
from mambabyte.training import optimiser as adamw
from mambabyte.training.loss import summed_nats

CHECKED = (2, 65)  # batch and length of what is checked
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}  # of a gradient through every layer
OPTIMISER_BYTES = 28  # a parameter: reads weight, gradient and two moments, writes weight and moments

Loss = Callable[[Tensor, Tensor], Tensor]  # (inputs, targets) (batch, length) -> mean nats


class Step:
    """A model, its optimiser and the batch of bytes that it learns from again and again."""

    def __init__(self, model: nn.Module, loss: Loss, ids: Tensor) -> None:
        self.model, self.loss, self.ids = model, loss, ids
        self.optimiser = adamw.build(model, learning_rate=1e-4, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.1)

    def __call__(self) -> Tensor:
        """One update; the mean loss in nats before it."""
        loss = self.loss(self.ids[:, :-1], self.ids[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()


def bench(device: torch.device, dtype: torch.dtype, *, preset: str, batch: int, length: int, rounds: int) -> Report:
    """Step of a preset over float32 masters, activations in `dtype`. Raises RuntimeError if gradients are wrong.

    A peer that is wrong or does not run has a sentence instead of times.
    """
    held = held_bytes(device)
    model = build(preset, device, dtype)
    error = deviation(model)
    expect(error, TOLERANCE[dtype], f"the gradient of {preset}")
    ids = random_bytes(batch, length + 1, device)
    steps, failed = {OURS: Step(model, ours(model), ids)}, {}
    peaks = {OURS: peak_gib(steps[OURS], device, held)}
    for name, make in peers.models(model).items():
        held = held_bytes(device)
        try:
            step = rival(name, make(), model, dtype, ids)
            peaks[name] = peak_gib(step, device, held)
        except PEER_ERRORS as why:
            failed[name] = sentence(why)
        else:
            steps[name] = step
    times = compare(steps, device, rounds)
    return Report(
        op="train",
        device=device,
        shape={"preset": preset, "batch": batch, "length": length},
        dtype=str(dtype).removeprefix("torch."),
        times={name: {"step": found} for name, found in times.items()},
        floor={"step": floor(model, batch * length, device, dtype)},
        error=error,
        bytes=batch * length,
        peak_gib={name: peak for name, peak in peaks.items() if peak is not None},
        failed_peers=failed,
    )


def rival(name: str, peer: nn.Module, model: ByteLM, dtype: torch.dtype, ids: Tensor) -> Step:
    """The step of a peer that has the weights of `model`. Raises RuntimeError if its loss is another one."""
    loss, small = theirs(peer, dtype), random_bytes(*CHECKED, ids.device)
    with torch.no_grad():
        apart = _apart(loss(small, small), ours(model)(small, small))
    expect(apart, TOLERANCE[dtype], f"the loss of {name}")
    return Step(peer.train(), loss, ids)


def build(preset: str, device: torch.device, dtype: torch.dtype) -> ByteLM:
    """A model of the preset with float32 weights that trains in `dtype`."""
    model = ByteLM.from_preset(preset, seed=0).to(device)
    model.compute_dtype = dtype
    return model.train()


def random_bytes(batch: int, length: int, device: torch.device) -> Tensor:
    """(batch, length) int64, the same in every run."""
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)


def ours(model: ByteLM) -> Loss:
    """The loss that `mambabyte train` minimises."""
    return lambda inputs, targets: summed_nats(model(inputs)[0], targets) / targets.numel()


def theirs(model: nn.Module, dtype: torch.dtype) -> Loss:
    """The loss of a peer's model, under autocast unless `dtype` is float32."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(inputs).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return loss


def deviation(model: ByteLM) -> float:
    """Norm of the error of the whole gradient over the norm of the truth: the same model on float64 references."""
    ids = random_bytes(*CHECKED, model.embedding.weight.device)
    exact = copy.deepcopy(model).double()
    exact.compute_dtype = None
    logger = logging.getLogger("mambabyte")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that float64 takes the references is the point here, no news
    try:
        truth = _gradient(exact, ids)
    finally:
        logger.setLevel(level)
    return _apart(_gradient(model, ids), truth)


def _gradient(model: ByteLM, ids: Tensor) -> Tensor:
    gradients = torch.autograd.grad(ours(model)(ids[:, :-1], ids[:, 1:]), list(model.parameters()))
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def _apart(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def floor(model: ByteLM, positions: int, device: torch.device, dtype: torch.dtype) -> float:
    """Milliseconds of the matrix products at a measured rate, the scans, the convolutions and the optimiser's bytes.

    Norms and loss are left out. Products are done three times: forward, and backward for inputs and for weights.
    """
    products = 6 * positions * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    total = products / floors.product_rate(device, dtype) * 1e3
    for name, A_log in model.named_parameters():
        if name.endswith("A_log"):
            channels, states = A_log.shape
            parts = (*scan.work(positions * channels, dtype, states), *conv.work(positions * channels, dtype))
            total += sum(floors.milliseconds(part, device) for part in parts)
    parameters = sum(p.numel() for p in model.parameters())
    return total + floors.milliseconds(Work(OPTIMISER_BYTES * parameters), device)


def held_bytes(device: torch.device) -> int:
    """Bytes of a GPU that tensors take now; 0 on a CPU, where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_gib(step: Step, device: torch.device, held: int) -> float | None:
    """What a GPU holds at the peak of a second step beyond `held` bytes: weights and moments too. None on a CPU."""
    if device.type != "cuda":
        return None
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - held) / 2**30
