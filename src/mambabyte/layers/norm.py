"""The norm of a residual unit: adds the branch to the stream and normalises the sum."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from mambabyte import ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormConfig:
    """RMSNorm ("rms") or LayerNorm ("layer"), with or without a bias."""

    kind: Literal["rms", "layer"] = "rms"
    bias: bool = False
    eps: float = 1e-5


class Norm(nn.Module):
    """y = norm(x + residual) with a float32 stream; see `mambabyte.ops.norm`."""

    def __init__(self, width: int, config: NormConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None

    def forward(self, x: Tensor, residual: Tensor | None, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x, residual (..., width) -> (y in out_dtype, stream = x + residual in float32)."""
        return ops.norm(
            x,
            self.weight,
            self.bias,
            residual=residual,
            eps=self.config.eps,
            kind=self.config.kind,
            out_dtype=out_dtype,
        )
