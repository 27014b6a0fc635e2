"""Residual addition and normalisation in plain torch. Differentiable by autograd."""

import torch
from torch import Tensor
from torch.nn import functional as F


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """stream = x + residual; y = stream normalised over its last dimension, scaled by weight and shifted by bias."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    stream = x.to(compute)
    if residual is not None:
        stream = stream + residual
    shape = (stream.shape[-1],)
    weight = weight.to(compute)
    if kind == "rms":
        y = F.rms_norm(stream, shape, weight, eps)
        y = y if bias is None else y + bias.to(compute)
    else:
        y = F.layer_norm(stream, shape, weight, None if bias is None else bias.to(compute), eps)
    return y.to(out_dtype), stream
