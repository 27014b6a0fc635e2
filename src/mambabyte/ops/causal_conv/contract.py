"""Contract of the causal convolution: what callers may rely on, whichever backend computes it."""

import torch
from torch import Tensor

from mambabyte.ops import checks
from mambabyte.ops.backends import choose
from mambabyte.ops.causal_conv import autograd, reference

ACTIVATIONS = (None, "silu")


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own taps over the past: y_t = act(bias + sum_w weight_w x_(t-W+1+w)).

    Args:
        x: (batch, length, channels). weight: (channels, width), the last tap meets x_t. bias: (channels,).
        activation: "silu" or None.
        initial_state: (batch, width - 1, channels), the inputs before position 0, oldest first; zeros when None.
        resets: (batch, length) bool. True at t: taps at t and later read zero for any input before t.
        backend: "auto" (by device), "reference", "cpu", "cuda" or "triton".

    Returns:
        y (batch, length, channels) in x's dtype, accumulated in float32, and the final state
        (batch, width - 1, channels) in x's dtype: the last inputs of the current document, zero before its start.
        Differentiable in every tensor but `resets`.

    Raises:
        ValueError: a tensor of the wrong shape, dtype or device, named. RuntimeError: a forced backend cannot run, or
            another backend than the reference is differentiated twice or in forward mode.
    """
    _check(x, weight, bias, activation, initial_state, resets)
    chosen = choose("causal_conv", backend, x, lambda module: module.why_not(x, weight.shape[1]))
    tensors = (x, weight, bias, initial_state, resets)
    if chosen == "reference":
        return reference.causal_conv(*tensors, activation=activation)
    return autograd.causal_conv(*tensors, activation=activation, backend=chosen)


def causal_conv_step(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    backend: str = "auto",
) -> Tensor:
    """One position of `causal_conv`: updates `state` (batch, width - 1, channels) in place; y (batch, channels).

    x: (batch, channels). Not differentiable. Raises as `causal_conv`.
    """
    checks.expect_dimensions("causal_conv_step", "x", x, "B E")
    _check(x[:, None], weight, bias, activation, state, None)
    chosen = choose("causal_conv", backend, x, lambda module: module.why_not(x, weight.shape[1]))
    run = reference.step if chosen == "reference" else autograd.kernels(chosen, x, weight).step
    with torch.no_grad():
        return run(state, x, weight, bias, activation=activation)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
) -> None:
    checks.expect_dimensions("causal_conv", "x", x, "B L E")
    checks.expect_dimensions("causal_conv", "weight", weight, "E W")
    if activation not in ACTIVATIONS:
        raise ValueError(f"causal_conv: activation={activation!r} is not one of {ACTIVATIONS}")
    batch, length, channels = x.shape
    width = weight.shape[1]
    if width < 1:
        raise ValueError("causal_conv: weight must have at least one tap")
    shapes = {
        "x": (x, (batch, length, channels)),
        "weight": (weight, (channels, width)),
        "bias": (bias, (channels,)),
        "initial_state": (initial_state, (batch, width - 1, channels)),
    }
    checks.expect_floats("causal_conv", shapes, x.device)
    checks.expect_resets("causal_conv", resets, (batch, length), x.device)
