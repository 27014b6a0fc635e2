"""What a layer is: a map (x, state) -> (y, state) built from a config, known by the name of its kind."""

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mambabyte.layers.state import State


class Layer(Protocol):
    """One residual branch. Any split of a sequence gives the same result as the whole, values and gradients."""

    def __call__(self, x_BLD: Tensor, state: Any = None, *, resets: Tensor | None = None) -> tuple[Tensor, State]:
        """y (batch, length, width) in x's dtype and the state after the last position; `state` None is the start."""
        ...

    def step_(self, x_BD: Tensor, state: Any) -> Tensor:
        """One position without autograd: returns y (batch, width) and updates the tensors of `state` in place."""
        ...

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """The state before the first byte; `dtype` is that of the activations."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Base of every layer's config: `mambabyte.config.kind` registers each under its name."""

    def build(self, d_model: int, n_layers: int) -> nn.Module:
        """A freshly initialised layer of width `d_model` for a stack of `n_layers`."""
        raise NotImplementedError
