"""Functions that the Triton kernels share. A `tensor` argument is a tuple: pointer, batch stride, row stride.

Imported by the kernels alone: it needs triton.
"""
# mypy: disable-error-code="no-untyped-def,assignment"
# Triton compiles these functions; what their arguments are is said by the call.

import triton
import triton.language as tl


@triton.jit
def softplus(v):
    """log(1 + e^v) to float32's precision, also where it is nearly zero."""
    e = tl.exp(-tl.abs(v))
    s = e / (2.0 + e)  # log(1 + e) = 2 artanh(s), and s <= 1/3: its series needs seven terms
    q = s * s
    series = q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(v, 0.0) + 2.0 * s * (1.0 + series)


@triton.jit
def sigmoid(v):
    """1 / (1 + e^-v), by an exponential that cannot overflow."""
    e = tl.exp(-tl.abs(v))
    return tl.where(v >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def silu_slope(v):
    """The derivative of v sigmoid(v)."""
    s = sigmoid(v)
    return s * (1.0 + v * (1.0 - s))


@triton.jit
def below(index, size, exists):
    """Which indices are below `size`; none of them unless their row exists."""
    return index < tl.where(exists, size, 0)


@triton.jit
def load_rows(tensor, batch, start, end, index, size, ROWS: tl.constexpr):
    """A tuple of ROWS rows from `start` on, as they lie in memory; zeros from row `end` and from index `size` on."""
    first = tensor[0] + (batch * tensor[1] + start * tensor[2])
    rows = ()
    for i in tl.static_range(ROWS):
        rows += (tl.load(first + i * tensor[2] + index, mask=below(index, size, start + i < end), other=0.0),)
    return rows


@triton.jit
def load_row(tensor, batch, t, index, inside):
    """Row t in float32, zeros outside of `inside`."""
    return tl.load(tensor[0] + (batch * tensor[1] + t * tensor[2]) + index, mask=inside, other=0.0).to(tl.float32)
