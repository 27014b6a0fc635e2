"""An op's dtypes and values are what its contract says, whether or not it is called under autocast."""

import contextlib

import pytest
import torch
from torch import Tensor

from mambabyte.ops import causal_conv, cross_entropy, mixer, norm, selective_scan

from . import triton_devices
from .wrong_tensors import CASES, Op

KERNELS = [(op, "cpu") for op in (causal_conv, norm, selective_scan)] + [(op, "triton") for op in CASES]
PLAIN = [(op, "reference") for op in (causal_conv, norm, selective_scan, cross_entropy)]


def results(op: Op, backend: str, dtype: torch.dtype | None, *, backward: bool) -> dict[str, Tensor]:
    """Outputs, and gradients made under autocast if `backward`; None: no autocast."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in CASES[op].items()}
    on = contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
    with on:
        outputs = [out for out in op(**leaves, backend=backend) if out.is_floating_point()]
    with on if backward else contextlib.nullcontext():
        wanted = {k: v for k, v in leaves.items() if v.requires_grad}
        gradients = torch.autograd.grad(outputs, list(wanted.values()), [torch.ones_like(out) for out in outputs])
    return dict(zip((*map(str, range(len(outputs))), *wanted), (*outputs, *gradients), strict=True))


def expect_same(op: Op, backend: str, *, backward: bool) -> None:
    """Assert that autocast changes no bit."""
    plain = results(op, backend, None, backward=backward)
    for name, value in results(op, backend, torch.bfloat16, backward=backward).items():
        assert value.dtype == plain[name].dtype, name
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize(("op", "backend"), KERNELS + PLAIN, ids=lambda v: getattr(v, "__name__", v))
def test_nothing_changes(op: Op, backend: str) -> None:
    if backend == "triton" and (reason := triton_devices.why_not()):
        pytest.skip(reason)
    expect_same(op, backend, backward=True)


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_nothing_changes_in_the_forward_of_the_mixer_made_of_ops(backend: str) -> None:
    expect_same(mixer, backend, backward=False)


def test_a_traced_mixer_does_not_hear_of_it_either() -> None:
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    expected = mixer(**CASES[mixer])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        traced = compiled(**CASES[mixer])
    for ours, theirs in zip(traced, expected, strict=True):
        assert torch.equal(ours, theirs)
    torch._dynamo.reset()


def test_where_there_is_no_autocast_nothing_is_asked() -> None:
    out, *_ = mixer(**{name: tensor.to("meta") for name, tensor in CASES[mixer].items()})
    assert out.shape == (2, 5, 6)
