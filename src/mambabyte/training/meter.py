"""What a run measures between two lines of its log, summed on the device and read only when a line is due."""

from typing import Any

import torch
from torch import Tensor

from mambabyte.training.loss import BITS_PER_NAT


class Meter:
    """Sums of one log interval: nats, scored bytes, steps, gradient norms.

    Adding does not wait for the device; reading does.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # nats, gradient norms
        self.bytes = 0
        self.steps = 0

    def add(self, nats: Tensor, bytes: int, gradient_norm: Tensor) -> None:
        """One step: nats and gradient_norm are scalars on the device."""
        self._sums += torch.stack((nats, gradient_norm)).double()
        self.bytes += bytes
        self.steps += 1

    def clear(self) -> None:
        """Begin the next interval."""
        self._sums.zero_()
        self.bytes = self.steps = 0

    def bits_per_byte(self) -> float:
        """Mean of the interval; 0 before its first step."""
        return self._sums.tolist()[0] * BITS_PER_NAT / max(self.bytes, 1)

    def gradient_norm(self) -> float:
        """Mean global norm of the gradient, before clipping."""
        return self._sums.tolist()[1] / max(self.steps, 1)

    def is_finite(self) -> bool:
        """Whether every loss and gradient of the interval was; then so are the weights that they led to."""
        return bool(self._sums.isfinite().all())

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `restore` takes back exactly."""
        return {"sums": self._sums.tolist(), "bytes": self.bytes, "steps": self.steps}

    def restore(self, values: dict[str, Any]) -> None:
        """Go on from what `to_dict` gave."""
        self._sums.copy_(torch.tensor(values["sums"], dtype=torch.float64))
        self.bytes, self.steps = values["bytes"], values["steps"]
