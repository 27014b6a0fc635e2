"""Contract of the norm: what callers may rely on, whichever backend computes it."""

import torch
from torch import Tensor

from mambabyte.ops import checks
from mambabyte.ops.backends import choose
from mambabyte.ops.norm import autograd, reference

KINDS = ("rms", "layer")


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    kind: str = "rms",
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise the sum: returns (y, stream), stream = x + residual.

    RMSNorm (https://arxiv.org/abs/1910.07467) or LayerNorm (https://arxiv.org/abs/1607.06450) over the last dimension.

    Args:
        x: (..., width). residual: like x, float32; None at the bottom of the stack.
        weight, bias: (width,).
        eps: added to the mean square (rms) or variance (layer).
        kind: "rms" or "layer". out_dtype: dtype of y; x's when None.
        backend: "auto" (by device), "reference", "cpu", "cuda" or "triton".

    Returns:
        y in out_dtype and the stream in float32 (float64 for float64 x). Statistics are float32 whatever the input.
        Differentiable in x, residual, weight and bias.

    Raises:
        ValueError: an unknown kind or a tensor of the wrong shape, dtype or device, named. RuntimeError: a forced
            backend cannot run, or another than the reference is differentiated twice or in forward mode.
    """
    if kind not in KINDS:
        raise ValueError(f"norm: kind={kind!r} is not one of {KINDS}")
    if x.ndim == 0:
        raise ValueError("norm: x must have at least one dimension, that of the width")
    shape, width = tuple(x.shape), (x.shape[-1],)
    shapes = {"x": (x, shape), "weight": (weight, width), "bias": (bias, width), "residual": (residual, shape)}
    checks.expect_floats("norm", shapes, x.device)
    if out_dtype not in (None, *checks.FLOATS):
        raise ValueError(f"norm: out_dtype must be float32, bfloat16, float16 or float64, got {out_dtype}")
    chosen = choose("norm", backend, x, lambda module: module.why_not(x))
    tensors, out_dtype = (x, weight, bias, residual), out_dtype or x.dtype
    if chosen == "reference":
        return reference.norm(*tensors, eps=eps, kind=kind, out_dtype=out_dtype)
    return autograd.norm(*tensors, eps=eps, kind=kind, out_dtype=out_dtype, backend=chosen)
