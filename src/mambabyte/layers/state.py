"""State is a value: an immutable tree of tensors, batch first, that can be cloned, indexed by row, joined and moved."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class State:
    """Base of every state. Each field is a tensor (batch first), another State or a tuple of States.

    Holding an old state is rolling back: nothing but a `step_` writes into its tensors.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same tree with `function` applied to every tensor."""
        values = {field.name: _map(getattr(self, field.name), function) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **values)

    def named_tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its dotted path, in a fixed order."""
        for field in dataclasses.fields(self):
            yield from _named(getattr(self, field.name), f"{prefix}{field.name}")

    def clone(self) -> Self:
        """A copy that shares no memory with this state."""
        return self.map(torch.clone)

    def detach(self) -> Self:
        """The same values cut from the autograd graph (truncated back-propagation)."""
        return self.map(Tensor.detach)

    def rows(self, index: Tensor | slice | Sequence[int]) -> Self:
        """The state of some rows of the batch, as a copy: `state.rows([3])`, `state.rows(slice(0, 2))`."""
        if isinstance(index, slice):
            return self.map(lambda t: t[index].clone())
        picked = index if isinstance(index, Tensor) else torch.tensor(list(index), dtype=torch.long)
        return self.map(lambda t: t[picked.to(t.device)])

    def to(self, device: torch.device | str) -> Self:
        """The state on `device`."""
        return self.map(lambda t: t.to(device))

    @property
    def batch(self) -> int:
        """Number of rows."""
        return next(self.named_tensors())[1].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(t.numel() * t.element_size() for _, t in self.named_tensors())

    @staticmethod
    def join(states: "Sequence[State]") -> "State":
        """One state whose batch is the rows of all `states`, in order."""
        tensors = zip(*([t for _, t in state.named_tensors()] for state in states), strict=True)
        joined = iter([torch.cat(rows) for rows in tensors])
        return states[0].map(lambda _: next(joined))


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    return value.map(function) if isinstance(value, State) else function(value)


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _named(item, f"{name}.{i}")
    elif isinstance(value, State):
        yield from value.named_tensors(f"{name}.")
    else:
        yield name, value
