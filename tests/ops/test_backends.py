"""Which backend is chosen: by device, the fastest first, with a reason for every rejection."""

import logging
from types import ModuleType

import pytest
import torch

from mambabyte.ops import backends, selective_scan

from .differentiate import outputs_and_gradients
from .scan_cases import scan_inputs

GPU = torch.device("cuda")


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
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in case.items()}
    with pytest.raises(RuntimeError, match=r"no kernel can run this compiled call: .* the tensor is float64"):
        compiled(**exact)
    torch._dynamo.reset()
