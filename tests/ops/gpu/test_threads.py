"""Kernels launched from threads that have not used the GPU before, as autograd's backward may be."""

import threading

import pytest
import torch

from mambabyte import ops

pytestmark = pytest.mark.gpu


def test_a_kernel_is_the_first_thing_that_a_thread_does() -> None:
    x = torch.randn(1, 64, 8, device="cuda", dtype=torch.bfloat16)
    weight, bias = torch.randn(8, 4, device="cuda"), torch.randn(8, device="cuda")
    expected, _ = ops.causal_conv(x, weight, bias)
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(ops.causal_conv(x, weight, bias)[0]))
    thread.start()
    thread.join()
    assert found, "the kernel was not launched"
    assert torch.equal(found[0], expected)
