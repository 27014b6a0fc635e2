"""The byte language model: embedding, a pattern of residual layers, a norm and a head.

An architecture is data: named layer configs and a tuple of names, the pattern. Letters as in the layers; V vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from mambabyte import config as configs
from mambabyte.layers import LayerConfig, Norm, NormConfig, State, initialisation
from mambabyte.layers.linear import Linear

BYTES = 256
# What stands before a document: its first byte is predicted after one newline from the zero state.
DOCUMENT_START = b"\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteLMConfig:
    """A whole architecture. `pattern` names the layers from bottom to top, each a key of `layers`.

    Ids 0..255 are bytes; a vocabulary above 256 leaves the ids after them to the user.
    """

    d_model: int
    layers: Mapping[str, LayerConfig]
    pattern: tuple[str, ...]
    norm: NormConfig = dataclasses.field(default_factory=NormConfig)
    tied_head: bool = False
    vocab_size: int = BYTES

    def __post_init__(self) -> None:
        if self.d_model < 1:
            raise ValueError(f"d_model must be at least 1, got {self.d_model}")
        if self.vocab_size < BYTES:
            raise ValueError(f"vocab_size must be at least {BYTES}, one id a byte, got {self.vocab_size}")
        if missing := sorted(set(self.pattern) - set(self.layers)):
            raise ValueError(
                f"pattern names {', '.join(missing)}, which layers does not define; it defines {', '.join(self.layers)}"
            )


@dataclasses.dataclass(frozen=True)
class ByteLMState(State):
    """The state of every layer, bottom to top."""

    layers: tuple[State, ...]


class Residual(nn.Module):
    """The only residual unit, x + layer(norm(x)), with the addition left to the next norm so that it can be fused."""

    def __init__(self, d_model: int, layer: LayerConfig, norm: NormConfig, n_layers: int) -> None:
        super().__init__()
        self.norm = Norm(d_model, norm)
        self.layer: Any = layer.build(d_model, n_layers)  # a Layer; nn.Module hides the call's types

    def forward(
        self,
        branch: Tensor,
        stream: Tensor | None,
        state: State | None,
        resets: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, State]:
        """(branch, stream) of the unit below -> (this layer's output, stream + branch, this layer's state)."""
        y, stream = self.norm(branch, stream, dtype)
        branch, state = self.layer(y, state, resets=resets)
        return branch, stream, state

    def step_(self, branch: Tensor, stream: Tensor | None, state: State, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """One position; `state` is updated in place."""
        y, stream = self.norm(branch, stream, dtype)
        return self.layer.step_(y, state), stream


class ByteLM(nn.Module):
    """A language model over bytes: (ids, state) -> (logits, state).

    `compute_dtype` is the dtype of the activations between layers; None means that of the weights. The residual stream
    and every recurrent state are float32. `trained_dtype` is what `compute_dtype` was in the training steps that made
    the weights, None where nobody knows: a record that is saved with them, and no forward pass reads it.
    """

    def __init__(self, config: ByteLMConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.trained_dtype: torch.dtype | None = None
        table = torch.empty(config.vocab_size, config.d_model)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, _weight=table, _freeze=False)
        self.layers = nn.ModuleList(
            Residual(config.d_model, config.layers[name], config.norm, len(config.pattern)) for name in config.pattern
        )
        self.norm = Norm(config.d_model, config.norm)
        self.head = Linear(config.d_model, config.vocab_size, bias=False)
        initialisation.embedding(self.embedding.weight)
        initialisation.uniform_fan_in(self.head.weight)
        if config.tied_head:
            self.head.weight = self.embedding.weight

    @classmethod
    def from_preset(cls, name: str, *, seed: int | None = None) -> Self:
        """A freshly initialised model of a preset; with `seed`, always the same one.

        Raises ValueError, listing the presets, for an unknown name.
        """
        from mambabyte.models.presets import preset

        if seed is None:
            return cls(preset(name))
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return cls(preset(name))

    def forward(
        self, ids: Tensor, state: ByteLMState | None = None, *, resets: Tensor | None = None
    ) -> tuple[Tensor, ByteLMState]:
        """Logits of the byte after each position, and the state after the last.

        Args:
            ids: (batch, length) integers in [0, vocab_size).
            state: what the model has read before; None is nothing.
            resets: (batch, length) bool; True at t: t is the first byte of a document, nothing before it reaches it.

        Returns:
            logits (batch, length, vocab_size) in the compute dtype and the state. Raises ValueError for ids of a wrong
            shape or dtype. Ids outside the vocabulary are the caller's bug: torch's IndexError on a CPU.
        """
        hidden, state = self.hidden(ids, state, resets=resets)
        return self.head(hidden), state

    def hidden(
        self, ids: Tensor, state: ByteLMState | None = None, *, resets: Tensor | None = None
    ) -> tuple[Tensor, ByteLMState]:
        """What the head reads: (batch, length, width), normalised, and the state."""
        if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers of shape (batch, length), got {ids.dtype} {tuple(ids.shape)}")
        dtype = self._dtype()
        branch, stream = self.embedding(ids.long()), None
        before = (None,) * len(self.layers) if state is None else state.layers
        states: list[State] = []
        for unit, old in zip(self.layers, before, strict=True):
            branch, stream, new = unit(branch, stream, old, resets, dtype)
            states.append(new)
        hidden, _ = self.norm(branch, stream, dtype)
        return hidden, ByteLMState(tuple(states))

    @torch.no_grad()
    def step_(self, ids: Tensor, state: ByteLMState) -> Tensor:
        """One byte a row, ids (batch,) -> logits (batch, vocab_size); `state` is updated in place, no autograd."""
        dtype = self._dtype()
        branch, stream = self.embedding(ids.long()), None
        for unit, old in zip(self.units(), state.layers, strict=True):
            branch, stream = unit.step_(branch, stream, old, dtype)
        hidden, _ = self.norm(branch, stream, dtype)
        return self.head(hidden)

    def init_state(self, batch: int = 1) -> ByteLMState:
        """The state before the first byte of `batch` sequences."""
        device, dtype = self.embedding.weight.device, self._dtype()
        return ByteLMState(tuple(unit.layer.init_state(batch, device, dtype) for unit in self.units()))

    def units(self) -> Iterator[Residual]:
        """The residual units, bottom to top."""
        return (cast(Residual, unit) for unit in self.layers)

    def _dtype(self) -> torch.dtype:
        return self.compute_dtype or self.embedding.weight.dtype

    def config_dict(self) -> dict[str, object]:
        """The architecture as plain JSON values."""
        return configs.to_dict(self.config)
