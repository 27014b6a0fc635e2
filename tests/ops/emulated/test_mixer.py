"""The mixer with the CUDA kernels, thread by thread on a CPU, against the reference in float64."""

import pytest
import torch

from mambabyte.ops import mixer
from tests.ops.gpu.compare import outputs_and_gradients
from tests.ops.test_mixer import case


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_values_and_gradients(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)  # where both rows start with a reset dconv_state is 0, to which no error is relative
    ours = case(2, 9, 8, 5, 3)
    ours |= {"xz": ours["xz"].to(dtype), "resets": torch.rand(2, 9) < 0.2}
    exact = {k: v.double() if v.is_floating_point() else v for k, v in ours.items()}
    weights = [torch.randn(out.shape) for out in mixer(**exact, backend="reference")]
    expected = outputs_and_gradients(mixer, exact, weights, backend="reference")
    for name, value in outputs_and_gradients(mixer, ours, weights, backend="cuda").items():
        error = (value.double() - expected[name]).norm() / expected[name].norm()
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


def test_kernels_that_one_of_its_ops_lacks() -> None:
    many = case(1, 2, 4, 3, 2) | {"conv_weight": torch.randn(4, 17), "conv_state": torch.randn(1, 16, 4)}
    with pytest.raises(RuntimeError, match="at most 16 taps, not 17"):
        mixer(**many, backend="cuda")
    many = case(1, 2, 4, 65, 2)
    with pytest.raises(RuntimeError, match="at most 64 states, not 65"):
        mixer(**many, backend="cuda")
