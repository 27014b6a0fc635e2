"""Contract of the selective scan: what callers may rely on, whichever backend computes it."""

import torch
from torch import Tensor

from mambabyte.ops import checks
from mambabyte.ops.backends import choose
from mambabyte.ops.selective_scan import autograd, reference


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t and return y_t = (C_t . h_t + D x_t) silu(z_t) with the last h.

    Mamba, https://arxiv.org/abs/2312.00752, section 3.2 and algorithm 2. Before use dt becomes softplus(dt + dt_bias)
    (softplus only if `dt_softplus`). A step of 0, which softplus makes of a dt of -inf, leaves h as it was: with such
    steps after a row's end, wherever that is in each row of a batch, the final state is the one at the end.

    Args:
        x, dt, z: (batch, length, channels); float32, bfloat16, float16 or float64. No kernel computes in float64: there
            "auto" is the reference.
        A: (channels, states). D, dt_bias: (channels,). float32 recommended whatever x is.
        B, C: (batch, length, states).
        initial_state: (batch, channels, states), h before position 0; zeros when None.
        resets: (batch, length) bool. True at t: nothing before t reaches t or later, forward or backward.
        backend: "auto" (by device), "reference", "cpu", "cuda" or "triton".

    Returns:
        y (batch, length, channels) in x's dtype and the final state (batch, channels, states) in float32 (float64 for
        float64 inputs). The state and its accumulation are float32 whatever the inputs. Differentiable in every tensor
        but `resets`; gradients have the dtype of their tensor.

    Raises:
        ValueError: a tensor of the wrong shape, dtype or device, named. RuntimeError: a forced backend cannot run, or
            another backend than the reference is differentiated twice or in forward mode.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, initial_state, resets)
    chosen = choose("selective_scan", backend, x, lambda module: module.why_not(x, A.shape[1]))
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, resets)
    if chosen == "reference":
        return reference.selective_scan(*tensors, dt_softplus=dt_softplus)
    return autograd.selective_scan(*tensors, dt_softplus=dt_softplus, backend=chosen)


def selective_scan_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    backend: str = "auto",
) -> Tensor:
    """One position of `selective_scan`: updates `state` (batch, channels, states) in place; y (batch, channels).

    x, dt, z: (batch, channels). B, C: (batch, states). Not differentiable. Same arithmetic per row whatever the batch.
    Raises as `selective_scan`.
    """
    checks.expect_dimensions("selective_scan_step", "x", x, "B E")
    z_row = None if z is None else z[:, None]
    _check(x[:, None], dt[:, None], A, B[:, None], C[:, None], D, z_row, dt_bias, state, None)
    chosen = choose("selective_scan", backend, x, lambda module: module.why_not(x, A.shape[1]))
    run = reference.step if chosen == "reference" else autograd.kernels(chosen, x, A.shape[1]).step
    with torch.no_grad():
        return run(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus)


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
) -> None:
    checks.expect_dimensions("selective_scan", "x", x, "B L E")
    checks.expect_dimensions("selective_scan", "A", A, "E N")
    batch, length, channels = x.shape
    states = A.shape[1]
    if states < 1:
        raise ValueError("selective_scan: A must have at least one state")
    row, per_state, state = (batch, length, channels), (batch, length, states), (batch, channels, states)
    shapes = {
        "x": (x, row),
        "dt": (dt, row),
        "A": (A, (channels, states)),
        "B": (B, per_state),
        "C": (C, per_state),
        "D": (D, (channels,)),
        "z": (z, row),
        "dt_bias": (dt_bias, (channels,)),
        "initial_state": (initial_state, state),
    }
    checks.expect_floats("selective_scan", shapes, x.device)
    checks.expect_resets("selective_scan", resets, (batch, length), x.device)
