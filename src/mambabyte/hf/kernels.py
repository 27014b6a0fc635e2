"""Stock transformers Mamba on our kernels: its module functions replaced by ours, until undone.

Transformers keeps channels before positions: (batch, channels, length); its conv state holds one input more than is
needed, the newest last. Shapes below are theirs.
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from mambabyte import ops


def patch() -> ExitStack:
    """Make every stock Mamba model of this process use our scan and convolution, on CPU and GPU, old models too.

    The result undoes it: call its `close()`, or use it in a `with` statement. Patching twice is patching once. Raises
    ValueError, naming what is missing, for a transformers whose Mamba has other functions than those of 5.17 to 5.23.
    """
    from transformers.models.mamba import modeling_mamba

    undo = ExitStack()
    _expect_known(modeling_mamba)
    for name, ours in REPLACED.items():
        theirs = getattr(modeling_mamba, name)
        if theirs is not ours:
            setattr(modeling_mamba, name, ours)
            undo.callback(setattr, modeling_mamba, name, theirs)
    return undo


def _expect_known(module: Any) -> None:
    import transformers

    for name, ours in REPLACED.items():
        theirs = getattr(module, name, None)
        known = set() if theirs is None else set(inspect.signature(theirs).parameters)
        needed = [p.name for p in inspect.signature(ours).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        if lacking := [parameter for parameter in needed if parameter not in known]:
            what = name if theirs is None else f"{', '.join(lacking)} in {name}"
            raise ValueError(f"transformers {transformers.__version__} cannot be patched: its Mamba has no {what}")


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """hidden_states, dt, z (B,E,L), B, C (B,N,L) -> y (B,E,L), and the last state (B,E,N) if asked for."""
    y, state = ops.selective_scan(
        hidden_states.transpose(1, 2),
        dt.transpose(1, 2),
        A,
        B.transpose(1, 2),
        C.transpose(1, 2),
        D,
        None if z is None else z.transpose(1, 2),
        dt_bias=delta_bias,
        dt_softplus=delta_softplus,
    )
    return (y.transpose(1, 2), state.to(hidden_states.dtype)) if return_last_state else y.transpose(1, 2)


def selective_scan_step(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """hidden_states, dt, z (B,E), B, C (B,N) -> y (B,E); `state` (B,E,N) is updated in place."""
    working = state.float()  # a copy only where transformers keeps the state in half precision
    y = ops.selective_scan_step(working, hidden_states, dt, A, B, C, D, z, dt_bias=dt_bias, dt_softplus=dt_softplus)
    if working is not state:
        state.copy_(working)
    return y


def causal_conv(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
) -> Tensor:
    """hidden_states (B,E,L), weight (E,W) -> y (B,E,L)."""
    return _activated(hidden_states, weight, bias, activation, None)


def causal_conv_step(
    hidden_states: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """hidden_states (B,E,L) -> y (B,E,L); `conv_state` (B,E,W), the last W inputs, is updated in place."""
    length, width = hidden_states.shape[-1], weight.shape[-1]
    before = conv_state[..., conv_state.shape[-1] - (width - 1) :].transpose(1, 2)
    y = _activated(hidden_states, weight, bias, activation, before.to(hidden_states.dtype))
    kept = conv_state.shape[-1]
    if length < kept:
        conv_state.copy_(conv_state.roll(-length, dims=-1))
    conv_state[..., max(kept - length, 0) :] = hidden_states[..., -kept:]
    return y


def _activated(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, before: Tensor | None
) -> Tensor:
    from transformers.activations import ACT2FN

    silu = "silu" if activation in ("silu", "swish") else None
    y, _ = ops.causal_conv(hidden_states.transpose(1, 2), weight, bias, activation=silu, initial_state=before)
    if silu is None and activation is not None:
        y = ACT2FN[activation](y)
    return y.transpose(1, 2)


def no_fused_layer(*_: Any, **__: Any) -> None:
    """Transformers takes the four functions above when the whole layer in one kernel is not there."""


REPLACED: dict[str, Callable[..., Any]] = {
    "mamba_selective_scan": selective_scan,
    "mamba_selective_state_update": selective_scan_step,
    "causal_conv1d_fn": causal_conv,
    "causal_conv1d_update": causal_conv_step,
    "mamba_inner_fn": no_fused_layer,
}
