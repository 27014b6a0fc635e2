"""The Triton kernels at sizes for a GPU: against the reference in float64, the same bits in every run."""

import pytest
import torch

from mambabyte.ops import causal_conv, mixer, norm, selective_scan

from ..triton_devices import on
from .compare import TOLERANCE, check, outputs_and_gradients
from .test_causal_conv import problem as convolution
from .test_mixer import on_gpu
from .test_selective_scan import problem as scan

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("batch", "length", "width", "states"), [(2, 700, 130, 16), (1, 3000, 64, 16), (3, 65, 100, 5), (2, 100, 96, 64)]
)
def test_scan(batch: int, length: int, width: int, states: int, dtype: torch.dtype) -> None:
    case = scan(batch, length, width, states, dtype)
    check(selective_scan, case, TOLERANCE[dtype], backend="triton")
    case["resets"] = torch.rand(batch, length, device="cuda") < 0.01
    check(selective_scan, case, TOLERANCE[dtype], backend="triton")


@pytest.mark.parametrize("states", [1, 2, 3, 4, 8, 10, 16, 24, 32, 48, 64])
def test_every_number_of_states(states: int) -> None:
    check(selective_scan, scan(2, 70, 36, states, torch.float32), TOLERANCE[torch.float32], backend="triton")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("length", "channels", "width"), [(300, 514, 4), (1000, 64, 2), (50, 130, 9), (20, 32, 16)])
def test_convolution(length: int, channels: int, width: int, dtype: torch.dtype) -> None:
    case = convolution(2, length, channels, width, dtype)
    check(causal_conv, case, TOLERANCE[dtype], backend="triton")
    case["resets"] = torch.rand(2, length, device="cuda") < 0.1
    check(causal_conv, case, TOLERANCE[dtype], backend="triton")


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(("rows", "width"), [(3000, 64), (33, 1000), (7, 4096), (5, 16384)])
def test_norm(rows: int, width: int, kind: str) -> None:
    for dtype, tolerance in TOLERANCE.items():
        case = {
            "x": torch.randn(rows, width, device="cuda").to(dtype) + 0.5,
            "weight": torch.randn(width, device="cuda"),
            "bias": torch.randn(width, device="cuda"),
            "residual": torch.randn(rows, width, device="cuda"),
        }
        check(norm, case, 2 * tolerance, kind=kind, eps=1e-3, backend="triton")


def test_mixer() -> None:
    case = on_gpu(batch=2, length=150, channels=96, states=16, rank=8, width=48)
    check(mixer, case, 2e-5, backend="triton")


def test_gradients_are_the_same_bits_in_every_run() -> None:
    for op, case in (
        (selective_scan, scan(1, 3000, 200, 16, torch.bfloat16)),
        (causal_conv, convolution(2, 300, 200, 4, torch.bfloat16)),
    ):
        weights = [torch.randn_like(t) for t in op(**case, backend="triton")]
        first, *others = (outputs_and_gradients(op, case, weights, backend="triton") for _ in range(4))
        assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_compiled_by_torch() -> None:
    case = on("cuda", scan(2, 64, 32, 16, torch.float32))
    weights = [torch.randn_like(t) for t in selective_scan(**case, backend="triton")]
    plain = outputs_and_gradients(selective_scan, case, weights, backend="triton")
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    for name, value in outputs_and_gradients(compiled, case, weights, backend="triton").items():
        assert torch.equal(value, plain[name]), name
