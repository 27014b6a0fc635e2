"""Contract of the mixer: what callers may rely on, whichever backend computes it."""

from torch import Tensor

from mambabyte.ops import checks
from mambabyte.ops.autocast import without_autocast
from mambabyte.ops.backends import choose
from mambabyte.ops.mixer import autograd, composed


def mixer(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    out_proj: Tensor,
    *,
    conv_state: Tensor | None = None,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve x, select dt, B and C from it, scan, gate with z and project out: a Mamba layer after its in-projection.

    Mamba, https://arxiv.org/abs/2312.00752, section 3.4. The same values as `causal_conv`, three linear maps and
    `selective_scan` one after another. On a GPU one op: its backward computes the convolution, dt and the scan's output
    again instead of keeping them, and writes the gradients of x and z side by side.

    Args:
        xz: (batch, length, 2 channels), x then z.
        conv_weight: (channels, width). conv_bias, D, dt_bias: (channels,). A: (channels, states).
        x_proj: (rank + 2 states, channels). dt_proj: (channels, rank). out_proj: (any width, channels). All are used in
            xz's dtype, under autocast as well.
        conv_state, state, resets: as `initial_state` and `resets` of `causal_conv` and `selective_scan`.
        backend: "auto" (by device), "reference", "cpu", "cuda" or "triton"; on a CPU those of its ops.

    Returns:
        (batch, length, any width) in xz's dtype and the final states of the convolution and the scan. Differentiable in
        every tensor but `resets`.

    Raises:
        ValueError: a tensor of the wrong shape, dtype or device, named. RuntimeError: a forced backend cannot run, or
            another backend than the reference is differentiated twice or in forward mode.
    """
    tensors = (xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, dt_bias, out_proj, conv_state, state, resets)
    _check(*tensors)
    with without_autocast(xz.device):
        if backend in ("reference", "cpu") or (backend == "auto" and xz.device.type != "cuda"):
            return composed.mixer(*tensors, backend=backend)
        states, width = A.shape[1], conv_weight.shape[1]
        chosen = choose("mixer", backend, xz, lambda module: module.why_not(xz, states, width))
        if chosen == "reference":
            return composed.mixer(*tensors, backend="auto")
        return autograd.mixer(*tensors, backend=chosen)


def _check(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    out_proj: Tensor,
    conv_state: Tensor | None,
    state: Tensor | None,
    resets: Tensor | None,
) -> None:
    checks.expect_dimensions("mixer", "xz", xz, "B L 2E")
    checks.expect_dimensions("mixer", "A", A, "E N")
    checks.expect_dimensions("mixer", "conv_weight", conv_weight, "E W")
    checks.expect_dimensions("mixer", "dt_proj", dt_proj, "E R")
    checks.expect_dimensions("mixer", "out_proj", out_proj, "D E")
    (batch, length, _), (channels, states) = xz.shape, A.shape
    width, rank = conv_weight.shape[1], dt_proj.shape[1]
    if width < 1 or states < 1:
        raise ValueError("mixer: conv_weight must have at least one tap and A at least one state")
    shapes = {
        "xz": (xz, (batch, length, 2 * channels)),
        "conv_weight": (conv_weight, (channels, width)),
        "conv_bias": (conv_bias, (channels,)),
        "x_proj": (x_proj, (rank + 2 * states, channels)),
        "dt_proj": (dt_proj, (channels, rank)),
        "A": (A, (channels, states)),
        "D": (D, (channels,)),
        "dt_bias": (dt_bias, (channels,)),
        "out_proj": (out_proj, (out_proj.shape[0], channels)),
        "conv_state": (conv_state, (batch, width - 1, channels)),
        "state": (state, (batch, channels, states)),
    }
    checks.expect_floats("mixer", shapes, xz.device)
    checks.expect_resets("mixer", resets, (batch, length), xz.device)
