"""Which backend is chosen: by device, the fastest first, with a reason for every rejection."""

import logging
from types import ModuleType

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mambabyte.ops import backends, cross_entropy, selective_scan

from .differentiate import outputs_and_gradients
from .scan_cases import in_float64, scan_inputs

with FakeTensorMode():
    GPU = torch.empty(0, device="cuda")


def refuse(*refused: str):  # type: ignore[no-untyped-def]
    """A `why_not` that turns down these backends."""

    def why_not(module: ModuleType) -> str | None:
        name = module.__name__.rpartition(".")[2]
        return f"{name} was refused" if name in refused else None

    return why_not


@pytest.mark.parametrize(
    ("refused", "chosen", "said"),
    [
        ((), "cuda", None),
        (("triton",), "cuda", None),
        (("cuda",), "triton", "norm runs on the slower triton backend: cuda was refused"),
        (
            ("cuda", "triton"),
            "reference",
            "norm runs on the slower plain-torch reference: cuda was refused; triton was refused",
        ),
    ],
)
def test_a_gpu_takes_the_first_that_can_and_says_once_why_not_the_best(
    refused: tuple[str, ...], chosen: str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    backends._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="mambabyte"):
        for _ in range(2):
            assert backends.choose("norm", "auto", GPU, refuse(*refused)) == chosen
    assert [record.getMessage() for record in caplog.records] == ([] if said is None else [said])
    backends._say_once.cache_clear()


def test_a_backend_forced_by_name_runs_or_raises_its_reason() -> None:
    assert backends.choose("norm", "triton", GPU, refuse("cuda")) == "triton"
    with pytest.raises(RuntimeError, match="norm: the triton backend cannot run here: triton was refused"):
        backends.choose("norm", "triton", GPU, refuse("triton"))
    with pytest.raises(RuntimeError, match="norm: the cpu backend cannot run here: the tensors are on cuda"):
        backends.choose("norm", "cpu", GPU, refuse())


def test_amds_gpus_are_served_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert backends.choose("norm", "auto", GPU, refuse()) == "triton"
    with pytest.raises(RuntimeError, match="this torch is built for ROCm"):
        backends.choose("norm", "cuda", GPU, refuse())


def test_a_traced_call_is_decided_when_it_runs() -> None:
    case = scan_inputs(1, 8, 5)
    plain = outputs_and_gradients(selective_scan, case)
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    for name, value in outputs_and_gradients(compiled, case).items():
        assert torch.equal(value, plain[name]), name
    torch._dynamo.reset()


def test_what_no_kernel_computes_in_is_traced_as_the_reference() -> None:
    exact = in_float64(scan_inputs(1, 3, 5))
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    traced = outputs_and_gradients(compiled, exact)
    for name, value in outputs_and_gradients(selective_scan, exact, backend="reference").items():
        assert torch.equal(value, traced[name]), name
    torch._dynamo.reset()


def test_a_traced_call_that_no_kernel_can_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BY_DEVICE", {"cpu": ("cuda",)})
    with pytest.raises(RuntimeError, match="no kernel can run this compiled call: the tensors are on cpu"):
        torch.compile(selective_scan, backend="aot_eager", fullgraph=True)(**scan_inputs(1, 8, 5))
    torch._dynamo.reset()


def test_a_backend_that_an_op_has_not_is_answered_by_those_it_has() -> None:
    with pytest.raises(ValueError, match="cross_entropy: backend='cpu' is not one of auto, reference, cuda, triton"):
        cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]), backend="cpu")
