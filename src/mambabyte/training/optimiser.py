"""AdamW over float32 masters: which weights decay, and its state as named tensors."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices and convolution taps, yes; biases, norms, D (vectors all) and A_log, no.

    Decay would pull A_log to 0 and with it every time constant of the state towards the same value.
    """
    return parameter.ndim >= 2 and name.rpartition(".")[2] != "A_log"


def build(
    model: nn.Module, *, learning_rate: float, betas: Sequence[float], epsilon: float, weight_decay: float
) -> torch.optim.AdamW:
    """Fused AdamW over two groups of `model`'s parameters: those that decay and those that do not."""
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if decays(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named.items() if not decays(n, p)], "weight_decay": 0.0},
    ]
    first, second = betas
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(first, second), eps=epsilon, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """The learning rate of the next step, for every group."""
    for group in optimiser.param_groups:
        group["lr"] = value


def named_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the optimiser's state as ("parameter:key", tensor); none before the first step."""
    for name, parameter in model.named_parameters():
        for key, tensor in optimiser.state.get(parameter, {}).items():
            yield f"{name}:{key}", tensor


def load_state(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `named_state` gave, onto the parameters' device."""
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(":")
        optimiser.state[parameters[name]][key] = tensor.to(parameters[name].device, copy=True)
