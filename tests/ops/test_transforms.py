"""Derivatives of every op on every backend: those it has by any of torch's routes, those it has not as an error."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from mambabyte.ops import causal_conv, cross_entropy, norm, selective_scan

from . import triton_devices
from .wrong_tensors import CASES, Op

# Of the kernels that are interpreted, those that are soon done: the others' derivatives go through the emulator.
KERNELS = [(op, "cpu") for op in (causal_conv, norm, selective_scan)] + [(op, "triton") for op in (cross_entropy, norm)]
on_every_kernel = pytest.mark.parametrize(("op", "backend"), KERNELS, ids=lambda v: getattr(v, "__name__", v))


@pytest.fixture(autouse=True)
def _runs_here(request: pytest.FixtureRequest) -> None:
    if request.getfixturevalue("backend") == "triton" and (reason := triton_devices.why_not()):
        pytest.skip(reason)


def problem(op: Op, backend: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A scalar of the outputs as a function of the op's first argument, and that argument."""
    first, *_ = CASES[op]

    def loss(x: Tensor) -> Tensor:
        outputs = op(**CASES[op] | {first: x}, backend=backend)
        return torch.stack([out.square().sum() for out in outputs if out.is_floating_point()]).sum()

    return loss, CASES[op][first]


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """By autograd."""
    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def expect_refusals(op: Op, backend: str) -> None:
    """Assert that second derivatives and forward mode raise, and not before they are asked for."""
    loss, x = problem(op, backend)
    refused = pytest.raises(RuntimeError, match=rf'^{op.__name__}: its kernels are .* pass backend="reference"$')
    leaf, ones = x.clone().requires_grad_(), torch.ones_like(x)
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    assert torch.equal(first, gradient(loss, x))
    for total in (first.sum(), first.square().sum()):
        with refused:
            torch.autograd.grad(total, leaf, retain_graph=True)
    with refused:
        torch.func.grad(lambda v: torch.func.grad(loss)(v).square().sum())(x)
    with refused:
        torch.func.jvp(loss, (x,), (ones,))
    for primal in (x, leaf):
        with forward_ad.dual_level():
            assert torch.equal(loss(primal), loss(x))
            with refused:
                loss(forward_ad.make_dual(primal, ones))


def expect_first_derivatives(op: Op, backend: str) -> None:
    """Assert that torch.func's gradients, rows of torch.vmap and checkpoints are what autograd gives."""
    loss, x = problem(op, backend)
    expected = gradient(loss, x)
    assert torch.equal(torch.func.grad(loss)(x), expected)
    for reentrant in (True, False):
        assert torch.equal(gradient(functools.partial(checkpoint, loss, use_reentrant=reentrant), x), expected)
    rows, losses = torch.stack([x, x * 2, x]), torch.vmap(loss)
    assert torch.equal(losses(rows), torch.stack([loss(row) for row in rows]))
    each = torch.stack([gradient(loss, row) for row in rows])
    assert torch.equal(torch.vmap(torch.func.grad(loss))(rows), each)
    assert torch.equal(torch.func.grad(lambda v: losses(v).sum())(rows), each)
    assert torch.equal(gradient(lambda v: losses(v).sum(), rows), each)


@on_every_kernel
def test_a_derivative_that_a_kernel_has_not_is_refused(op: Op, backend: str) -> None:
    expect_refusals(op, backend)


@on_every_kernel
def test_first_derivatives_by_any_route(op: Op, backend: str) -> None:
    expect_first_derivatives(op, backend)


# Where the tracer stops it instantiates the function, and then traces what a kernel's wrapper caches.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning", "ignore:Dynamo detected")
@pytest.mark.parametrize("backend", ["cpu"])
def test_traced_calls_are_not_silent_either(backend: str) -> None:
    loss, x = problem(norm, backend)
    refused = pytest.raises(RuntimeError, match=r'^norm: its kernels are .* pass backend="reference"$')
    rows, ones = x[None], torch.ones_like(x)
    compiled = torch.compile(loss, backend="aot_eager")
    assert torch.equal(compiled(x), loss(x))
    with forward_ad.dual_level(), refused:
        compiled(forward_ad.make_dual(x, ones))
    with refused:
        torch.compile(lambda v: torch.func.jvp(loss, (v,), (ones,)), backend="aot_eager")(x)
    assert torch.equal(torch.compile(torch.vmap(loss), backend="aot_eager", fullgraph=True)(rows), loss(x)[None])
    torch._dynamo.reset()
