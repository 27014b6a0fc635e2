"""What does a byte cost? Parameters, floating-point operations and state, from the config alone.

Sources: FLOPs per byte as the MambaByte and SpaceByte papers count them (https://arxiv.org/abs/2401.13660,
https://arxiv.org/abs/2404.14408, table 6): 2 for each weight of a layer's projections, convolution or A_log, and 4 for
each of its E * N state elements; embedding, head, norms and biases are left out, as there. Forward only; training is
three times as much.
"""

import dataclasses
from functools import singledispatch

from mambabyte.layers import LayerConfig, MambaConfig, NormConfig
from mambabyte.models.byte_lm import ByteLMConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one layer or model: parameters; FLOPs per byte, forward; bytes of float32 state per sequence."""

    parameters: int
    flops_per_byte: int
    state_bytes: int

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        parameters, flops, state = (a + b for a, b in pairs)
        return Cost(parameters=parameters, flops_per_byte=flops, state_bytes=state)


@singledispatch
def layer_cost(layer: LayerConfig, d_model: int) -> Cost:
    """Cost of one layer of width `d_model`; a new kind of layer registers its own."""
    raise NotImplementedError(f"no cost is written for {type(layer).__name__}")


@layer_cost.register
def _mamba(layer: MambaConfig, d_model: int) -> Cost:
    E, N, R, W = layer.inner(d_model), layer.d_state, layer.rank(d_model), layer.d_conv
    projections = d_model * 2 * E + E * (R + 2 * N) + R * E + E * d_model
    counted = projections + E * W + E * N
    biases = E + E + E  # conv bias, dt bias, D
    if layer.bias:
        biases += 2 * E + d_model  # of in_proj and out_proj
    return Cost(
        parameters=counted + biases,
        flops_per_byte=2 * counted + 4 * E * N,
        state_bytes=4 * (E * N + (W - 1) * E),
    )


def norm_parameters(norm: NormConfig, d_model: int) -> int:
    """Weights of one norm."""
    return d_model * (2 if norm.bias else 1)


def model_cost(config: ByteLMConfig) -> Cost:
    """Cost of a whole model; a tied head is not stored twice."""
    table = config.vocab_size * config.d_model
    norms = (len(config.pattern) + 1) * norm_parameters(config.norm, config.d_model)
    total = Cost(
        parameters=norms + table * (1 if config.tied_head else 2),
        flops_per_byte=0,
        state_bytes=0,
    )
    for name in config.pattern:
        total += layer_cost(config.layers[name], config.d_model)
    return total
