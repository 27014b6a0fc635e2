"""The norm's contract on the reference backend."""

import pytest
import torch

from mambabyte.ops import norm


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_adds_then_normalises(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 3, 8, generator=g), torch.randn(2, 3, 8, generator=g)
    weight, bias = torch.randn(8, generator=g), torch.randn(8, generator=g)
    y, stream = norm(x, weight, bias, residual=residual, kind=kind, eps=1e-5)
    total = x + residual
    centred = total - total.mean(-1, keepdim=True) if kind == "layer" else total
    expected = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias
    torch.testing.assert_close(stream, total)
    torch.testing.assert_close(y, expected)


def test_the_stream_is_float32_and_the_output_as_asked() -> None:
    x = torch.randn(2, 8).bfloat16()
    y, stream = norm(x, torch.ones(8), out_dtype=torch.float16)
    assert stream.dtype == torch.float32
    assert y.dtype == torch.float16
    assert norm(x, torch.ones(8))[0].dtype == torch.bfloat16


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="kind='batch' is not one of"):
        norm(torch.ones(2, 4), torch.ones(4), kind="batch")
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), expected \(4,\)"):
        norm(torch.ones(2, 4), torch.ones(3))
