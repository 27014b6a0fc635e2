"""An op against its floor and its peers: check every contestant, then time them in turns."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mambabyte.benchmarking import floors
from mambabyte.benchmarking.floors import Work
from mambabyte.benchmarking.report import OURS, Report
from mambabyte.benchmarking.timing import Call, Times, compare

Case = dict[str, Tensor]
CHECKED = (2, 200, 64)  # the largest batch, length and channels that are checked: the reference is a slow loop
# What a package raises that was built for another torch, whose API is another version's, or that wants more memory.
PEER_ERRORS = (ImportError, AttributeError, TypeError, ValueError, RuntimeError)
# Norm of the error over the norm of the truth: rounding stays well below, a wrong kernel is far above.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """An op as a function of the tensors of a case by name, in our layout (batch, length, channels).

    One with `time_last` gets tensors whose neighbours in memory are neighbours in time, the layout of other packages.
    One without `backward` is timed forward only: its backward is quadratic in the length.
    """

    run: Callable[..., Tensor]
    time_last: bool = False
    backward: bool = True

    def leaves(self, case: Case) -> Case:
        """The case's values as tensors that want gradients."""
        kept = {name: t.mT.contiguous().mT if self.time_last and t.ndim == 3 else t for name, t in case.items()}
        return {name: t.detach().requires_grad_() for name, t in kept.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """An op to time: `inputs(batch, length, channels, device=, dtype=)` are its tensors by name.

    `work(elements, dtype)` is that of forward and of backward over so many (position, channel).
    """

    name: str
    ours: Contestant
    reference: Contestant
    peers: Callable[[torch.device], dict[str, Contestant]]
    inputs: Callable[..., Case]
    work: Callable[[int, torch.dtype], tuple[Work, Work]]


def bench(
    op: Operator, device: torch.device, dtype: torch.dtype, *, batch: int, length: int, channels: int, rounds: int
) -> Report:
    """Forward and forward + backward. Raises RuntimeError, before anything is timed, if ours is wrong.

    A peer that is wrong or does not run has a sentence instead of times.
    """
    small = (min(asked, most) for asked, most in zip((batch, length, channels), CHECKED, strict=True))
    little = op.inputs(*small, device=device, dtype=dtype)
    case = op.inputs(batch, length, channels, device=device, dtype=dtype)
    error = check(OURS, op.ours, op.reference, little, dtype)
    contestants, failed = {OURS: op.ours}, {}
    for name, peer in op.peers(device).items():
        try:
            check(name, peer, op.reference, little, dtype)
            _forward(peer.run, peer.leaves(case))()
        except PEER_ERRORS as why:
            failed[name] = sentence(why)
        else:
            contestants[name] = peer
    forward, backward = (floors.milliseconds(w, device) for w in op.work(batch * length * channels, dtype))
    return Report(
        op=op.name,
        device=device,
        shape={"batch": batch, "length": length, "channels": channels},
        dtype=str(dtype).removeprefix("torch."),
        times=race(contestants, case, device, rounds),
        floor={"forward": forward, "forward_backward": forward + backward},
        error=error,
        failed_peers=failed,
    )


def deviation(contestant: Contestant, reference: Contestant, case: Case) -> dict[str, float]:
    """Norm of the error over that of the truth, of y and of every gradient; the truth is the reference in float64."""
    results: list[Case] = []
    dy = None
    for each, values in ((contestant, case), (reference, {name: t.double() for name, t in case.items()})):
        leaves = each.leaves(values)
        y = each.run(**leaves)
        dy = torch.randn_like(y) if dy is None else dy.to(y)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy) if contestant.backward else ()
        results.append({"y": y.detach()} | dict(zip(leaves, gradients, strict=contestant.backward)))
    found, truth = results
    return {name: float((found[name].double() - t).norm() / t.norm()) for name, t in truth.items()}


def check(name: str, contestant: Contestant, reference: Contestant, case: Case, dtype: torch.dtype) -> float:
    """The largest deviation of a contestant. Raises RuntimeError naming it and the tensor that is wrong."""
    errors = deviation(contestant, reference, case)
    for tensor, error in errors.items():
        expect(error, TOLERANCE[dtype], f"{tensor} of {name}")
    return max(errors.values())


def expect(error: float, tolerance: float, what: str) -> None:
    """Raises RuntimeError unless the error is within the tolerance: figures of something wrong are worth nothing."""
    if not error <= tolerance:
        raise RuntimeError(f"no figures: {what} deviates from the reference by {error:.1e}, more than {tolerance:.0e}")


def sentence(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0]


def race(
    contestants: Mapping[str, Contestant], case: Case, device: torch.device, rounds: int
) -> dict[str, dict[str, Times]]:
    """The times of every contestant by direction, "forward" and "forward_backward"."""
    forward: dict[str, Call] = {}
    both: dict[str, Call] = {}
    for name, contestant in contestants.items():
        leaves = contestant.leaves(case)
        forward[name] = _forward(contestant.run, leaves)
        if contestant.backward:
            both[name] = _both(contestant.run, leaves)
    directions = {"forward": compare(forward, device, rounds), "forward_backward": compare(both, device, rounds)}
    return {name: {d: times[name] for d, times in directions.items() if name in times} for name in contestants}


def _forward(run: Callable[..., Tensor], leaves: Case) -> Call:
    def call() -> None:
        with torch.no_grad():
            run(**leaves)

    return call


def _both(run: Callable[..., Tensor], leaves: Case) -> Call:
    with torch.no_grad():
        dy = torch.randn_like(run(**leaves))
    return lambda: torch.autograd.grad(run(**leaves), list(leaves.values()), dy)
