"""The Triton kernels of the causal convolution. W taps, the last of which meets its own row.

A program has a tile of TIME rows and BLOCK channels. What a row sees is read again for each tap, from the cache.
"""
# mypy: disable-error-code="no-untyped-def,assignment"
# Triton compiles these functions; what their arguments are is said by the call.

import triton
import triton.language as tl

from mambabyte.ops.triton_functions import load_row, sigmoid, silu_slope


@triton.jit
def _place(length, channels, TIME: tl.constexpr, BLOCK: tl.constexpr):
    """Batch row, first row and channels of this program of a grid over `length` rows, and which stretch it is."""
    blocks = tl.cdiv(channels, BLOCK)
    stretches = tl.cdiv(length, TIME)
    block, stretch = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    return (stretch // stretches).to(tl.int64), stretch % stretches * TIME, block * BLOCK + tl.arange(0, BLOCK), stretch


@triton.jit
def _inputs(x, past, batch, t, e, length, channels, W: tl.constexpr):
    """Rows t of x in float32; the initial state before row 0, zeros where there is neither."""
    here = (t[:, None] >= 0) & (t[:, None] < length) & (e[None, :] < channels)
    rows = x[0] + batch * x[1] + t.to(tl.int64)[:, None] * x[2] + e[None, :]
    values = tl.load(rows, mask=here, other=0.0).to(tl.float32)
    if past is not None:
        before = (t[:, None] < 0) & (t[:, None] >= 1 - W) & (e[None, :] < channels)
        rows = past + (batch * (W - 1) + W - 1 + t[:, None]) * channels + e[None, :]
        values += tl.load(rows, mask=before, other=0.0).to(tl.float32)
    return values


@triton.jit
def _no_reset(resets, batch, t, length):
    """Whether what lies before rows t is seen from them."""
    return tl.load(resets + batch * length + t, mask=(t >= 0) & (t < length), other=0) == 0


@triton.jit
def _tap(weight, tap, e, channels, W: tl.constexpr):
    return tl.load(weight + e * W + tap, mask=e < channels, other=0.0)[None, :]


@triton.jit
def _convolve(x, past, weight, bias, resets, batch, t, e, length, channels, W: tl.constexpr):
    """The sum over taps at rows t, before the activation."""
    total = tl.zeros([t.shape[0], e.shape[0]], tl.float32)
    if bias is not None:
        total += tl.load(bias + e, mask=e < channels, other=0.0)[None, :]
    seen = t == t
    for lag in tl.static_range(W):
        values = _inputs(x, past, batch, t - lag, e, length, channels, W)
        if resets is not None:
            values = tl.where(seen[:, None], values, 0.0)
            seen &= _no_reset(resets, batch, t - lag, length)
        total += values * _tap(weight, W - 1 - lag, e, channels, W)
    return total


@triton.jit
def forward(
    x, past, weight, bias, resets, y, length, channels,
    W: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y of a tile."""
    batch, start, e, _ = _place(length, channels, TIME, BLOCK)
    t = start + tl.arange(0, TIME)
    out = _convolve(x, past, weight, bias, resets, batch, t, e, length, channels, W)
    if SILU:
        out *= sigmoid(out)
    here = y + (batch * length + t)[:, None] * channels + e[None, :]
    tl.store(here, out, mask=(t < length)[:, None] & (e < channels)[None, :])


@triton.jit
def remember(x, past, resets, last, length, channels, W: tl.constexpr, BLOCK: tl.constexpr):
    """The final state: the last W - 1 inputs of the current document, zeros before its start."""
    blocks = tl.cdiv(channels, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    e = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    last_row = length - 1 + tl.arange(0, 1)
    seen = last_row == last_row
    for lag in tl.static_range(W - 1):
        t = last_row - lag
        values = _inputs(x, past, batch, t, e, length, channels, W)
        if resets is not None:
            values = tl.where(seen[:, None], values, 0.0)
            seen &= _no_reset(resets, batch, t, length)
        here = last + (batch * (W - 1) + W - 2 - lag) * channels + e[None, :]
        tl.store(here, values, mask=(e < channels)[None, :])


@triton.jit
def backward(
    x, past, weight, bias, resets, dy, dlast, dx, dpast, partial, length, channels,
    W: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of inputs, of which row 0 of the grid is the oldest of the initial state.

    Its share of the gradients of the taps and the bias is left in `partial`.
    """
    batch, start, e, stretch = _place(length + W - 1, channels, TIME, BLOCK)
    t = start - (W - 1) + tl.arange(0, TIME)
    in_e = (e < channels)[None, :]
    values = _inputs(x, past, batch, t, e, length, channels, W)
    total = tl.zeros([TIME, BLOCK], tl.float32)
    seen = t < length
    partial += stretch.to(tl.int64) * (W + 1) * channels + e
    for lag in range(W):  # what row t + lag gives back to its input t
        later = t + lag
        here = ((later >= 0) & (later < length))[:, None] & in_e
        rows = dy[0] + batch * dy[1] + later.to(tl.int64)[:, None] * dy[2] + e[None, :]
        de = tl.load(rows, mask=here, other=0.0).to(tl.float32)
        if SILU:
            slope = silu_slope(_convolve(x, past, weight, bias, resets, batch, later, e, length, channels, W))
            de = tl.where(here, de * slope, 0.0)
        if lag == 0:
            tl.store(partial + W * channels, tl.sum(de, 0), mask=e < channels)
        if resets is not None:
            de = tl.where(seen[:, None], de, 0.0)
            seen &= _no_reset(resets, batch, later + 1, length)
        total += de * _tap(weight, W - 1 - lag, e, channels, W)
        tl.store(partial + (W - 1 - lag) * channels, tl.sum(de * values, 0), mask=e < channels)
    if dlast is not None:
        age = t - (length - W + 1)  # place in the final state
        kept = ((age >= 0) & (t < length) & seen)[:, None] & in_e
        total += tl.load(dlast + (batch * (W - 1) + age)[:, None] * channels + e[None, :], mask=kept, other=0.0)
    own = ((t >= 0) & (t < length))[:, None] & in_e
    tl.store(dx[0] + batch * dx[1] + t.to(tl.int64)[:, None] * dx[2] + e[None, :], total, mask=own)
    if dpast is not None:
        rows = dpast + (batch * (W - 1) + W - 1 + t)[:, None] * channels + e[None, :]
        tl.store(rows, total, mask=((t < 0) & (t >= 1 - W))[:, None] & in_e)


@triton.jit
def step(
    state, x, weight, bias, y, channels, W: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    """One position: `state`, a tuple of a pointer and strides of rows, positions and channels, is updated in place."""
    blocks = tl.cdiv(channels, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    e = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    in_e = e < channels
    total = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        total += tl.load(bias + e, mask=in_e, other=0.0)
    newer = load_row(x, batch, 0, e, in_e)
    total += newer * tl.load(weight + e * W + W - 1, mask=in_e, other=0.0)
    here = state[0] + batch * state[1] + e * state[3]
    for tap in tl.static_range(W - 2, -1, -1):
        value = tl.load(here + tap * state[2], mask=in_e, other=0.0).to(tl.float32)
        total += value * tl.load(weight + e * W + tap, mask=in_e, other=0.0)
        tl.store(here + tap * state[2], newer, mask=in_e)
        newer = value
    if SILU:
        total *= sigmoid(total)
    tl.store(y + batch * channels + e, total, mask=in_e)
