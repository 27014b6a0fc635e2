"""The Triton kernels of the selective scan. Derivation and design: docs/kernels.md.

A program walks the rows of one segment of one batch row for BLOCK channels, the states of a channel in a column of an
(N, BLOCK) tile: every tensor with states has its channels innermost here. Names as in the paper; A comes multiplied by
log2(e), so that a decay is one exp2; STATES is the number of states, N that padded to a power of two.
"""
# mypy: disable-error-code="no-untyped-def,assignment"
# Triton compiles these functions; what their arguments are is said by the call.

import triton
import triton.language as tl

from mambabyte.ops.triton_functions import below, load_row, load_rows, sigmoid, silu_slope, softplus

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Where `_decay` takes 2^v from its series: what follows v^4 is below 2^-29 there.
NEAR_ONE: tl.constexpr = tl.constexpr(1 / 16)


@triton.jit
def _place(length, channels, segments, segment_rows, BLOCK: tl.constexpr):
    """Batch row, segment, its first row and the row after its last, first channel: of this program."""
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    block, walk = program % blocks, program // blocks
    batch, segment = (walk // segments).to(tl.int64), walk % segments
    start = segment.to(tl.int64) * segment_rows
    return block, batch, segment, start, tl.minimum(start + segment_rows, length)


@triton.jit
def _tile(block, channels, STATES: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """Channels of this program and which exist, its states, and offsets of a tile of both with their mask."""
    e, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    in_e = e < channels
    return e, in_e, n, n[:, None] * channels + e[None, :], (n < STATES)[:, None] & in_e[None, :]


@triton.jit
def _channel(parameter, e, in_e):
    """A parameter of these channels; zero where the layer has none."""
    if parameter is None:
        values = tl.zeros_like(e).to(tl.float32)
    else:
        values = tl.load(parameter + e, mask=in_e, other=0.0)
    return values


@triton.jit
def _biased_step(dt, bias, SOFTPLUS: tl.constexpr):
    """dt + bias, and the step it stands for."""
    v = dt.to(tl.float32) + bias
    if SOFTPLUS:
        return v, softplus(v)
    return v, v


@triton.jit
def _keeps(resets, batch, length, t, end):
    """Whether what was before row t reaches it."""
    if resets is None:
        keep = True
    else:
        keep = tl.load(resets + batch * length + t, mask=t < end, other=0) == 0
    return keep


@triton.jit
def _decay(delta, A, dt):
    """What a step of delta leaves of each state.

    A GPU's exp2 (in PTX: ex2.approx) is right to 2^-22, but its errors need not cancel: a state whose decay is near one
    sums them over all that it remembers, 1 / (1 - decay) rows. There a series is right to the rounding. For a dt of 16
    bits, itself a thousand times as coarse, it would be wasted.
    """
    v = delta[None, :] * A
    decay = tl.exp2(v)
    if dt[0].dtype.element_ty == tl.float32:
        series = 1.0 + v * (LN2 + v * (LN2**2 / 2 + v * (LN2**3 / 6 + v * (LN2**4 / 24))))
        decay = tl.where(tl.abs(v) < NEAR_ONE, series, decay)
    return decay


@triton.jit
def _advance(h, A, B, delta, dt, x, resets, keep):
    """The state after a row from the state before it."""
    if resets is not None:
        h = tl.where(keep, h, 0.0)
    return _decay(delta, A, dt) * h + (delta * x)[None, :] * B[:, None]


@triton.jit
def forward(
    x, dt, z, B, C, A, D, bias, resets, first, y, ends, elapsed, checkpoints, length, channels, segments, segment_rows,
    STATES: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Walk a segment from its first state: y if given, its end state, its checkpoints and elapsed step if given."""
    block, batch, segment, start, end = _place(length, channels, segments, segment_rows, BLOCK)
    e, in_e, n, tile, in_tile = _tile(block, channels, STATES, N, BLOCK)
    A = tl.load(A + tile, mask=in_tile, other=0.0)
    D, bias = _channel(D, e, in_e), _channel(bias, e, in_e)
    here = (batch * segments + segment) * STATES * channels
    h = tl.zeros([N, BLOCK], tl.float32)
    if first is not None:
        h = tl.load(first + here + tile, mask=in_tile, other=0.0)
    passed = tl.zeros([BLOCK], tl.float32)
    for begin in range(start, end, CHUNK):
        if checkpoints is not None:
            chunk = batch * tl.cdiv(length, CHUNK) + begin // CHUNK
            tl.store(checkpoints + chunk * STATES * channels + tile, h, mask=in_tile)
        for t in range(begin, tl.minimum(begin + CHUNK, end), ROWS):
            dts = load_rows(dt, batch, t, end, e, channels, ROWS)
            xs = load_rows(x, batch, t, end, e, channels, ROWS)
            Bs = load_rows(B, batch, t, end, n, STATES, ROWS)
            if y is not None:
                Cs = load_rows(C, batch, t, end, n, STATES, ROWS)
                if z is not None:
                    zs = load_rows(z, batch, t, end, e, channels, ROWS)
            for i in tl.static_range(ROWS):
                live = t + i < end
                _, delta = _biased_step(dts[i], bias, SOFTPLUS)
                delta = tl.where(live, delta, 0.0)  # a row that does not exist leaves the state as it is
                keep = _keeps(resets, batch, length, t + i, end)
                x_E = xs[i].to(tl.float32)
                h = _advance(h, A, Bs[i].to(tl.float32), delta, dt, x_E, resets, keep)
                if elapsed is not None:
                    passed += delta
                    if resets is not None:
                        passed = tl.where(keep, passed, float("inf"))
                if y is not None:
                    out = tl.sum(h * Cs[i].to(tl.float32)[:, None], 0) + D * x_E
                    if z is not None:
                        gate = zs[i].to(tl.float32)
                        out *= gate * sigmoid(gate)
                    tl.store(y + (batch * length + t) * channels + i * channels + e, out, mask=below(e, channels, live))
    tl.store(ends + here + tile, h, mask=in_tile)
    if elapsed is not None:
        tl.store(elapsed + (batch * segments + segment) * channels + e, passed, mask=in_e)


@triton.jit
def carry(
    chained, elapsed, A, first, segments, channels,
    STATES: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """From what each segment ends with if it starts from zero to what it starts with, in place; BACK: against time.

    An infinite elapsed step says that the segment has a reset.
    """
    blocks = tl.cdiv(channels, BLOCK)
    block, batch = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    e, in_e, _, tile, in_tile = _tile(block, channels, STATES, N, BLOCK)
    A = tl.load(A + tile, mask=in_tile, other=0.0)
    carried = tl.zeros([N, BLOCK], tl.float32)
    if first is not None:
        carried = tl.load(first + batch * STATES * channels + tile, mask=in_tile, other=0.0)
    for i in range(segments):
        segment = batch * segments + i
        if BACK:
            segment = batch * segments + segments - 1 - i
        here = chained + segment * STATES * channels + tile
        own = tl.load(here, mask=in_tile, other=0.0)
        tl.store(here, carried, mask=in_tile)
        passed = tl.load(elapsed + segment * channels + e, mask=in_e, other=0.0)[None, :]
        reset = passed == float("inf")
        carried = own + tl.where(reset, 0.0, tl.exp2(tl.where(reset, 0.0, passed) * A) * carried)


@triton.jit
def _gated(dy, z):
    """The gradient of what the gate multiplied."""
    if z is None:
        dp = dy.to(tl.float32)
    else:
        gate = z.to(tl.float32)
        dp = dy.to(tl.float32) * gate * sigmoid(gate)
    return dp


@triton.jit
def adjoint(
    dt, z, dy, C, A, bias, resets, ends, elapsed, length, channels, segments, segment_rows,
    STATES: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Walk a segment back in time from zero: the gradient of the state before it, and its elapsed step."""
    block, batch, segment, start, end = _place(length, channels, segments, segment_rows, BLOCK)
    e, in_e, n, tile, in_tile = _tile(block, channels, STATES, N, BLOCK)
    A = tl.load(A + tile, mask=in_tile, other=0.0)
    bias = _channel(bias, e, in_e)
    g = tl.zeros([N, BLOCK], tl.float32)
    passed = tl.zeros([BLOCK], tl.float32)
    for group in range(tl.cdiv(end - start, ROWS) - 1, -1, -1):
        t = start + group * ROWS
        dts = load_rows(dt, batch, t, end, e, channels, ROWS)
        dys = load_rows(dy, batch, t, end, e, channels, ROWS)
        Cs = load_rows(C, batch, t, end, n, STATES, ROWS)
        zs = dys
        if z is not None:
            zs = load_rows(z, batch, t, end, e, channels, ROWS)
        for i in tl.static_range(ROWS - 1, -1, -1):
            _, delta = _biased_step(dts[i], bias, SOFTPLUS)
            delta = tl.where(t + i < end, delta, 0.0)
            dp = _gated(dys[i], None if z is None else zs[i])
            g = _decay(delta, A, dt) * (g + Cs[i].to(tl.float32)[:, None] * dp[None, :])
            passed += delta
            if resets is not None:
                keep = _keeps(resets, batch, length, t + i, end)
                g = tl.where(keep, g, 0.0)
                passed = tl.where(keep, passed, float("inf"))
    tl.store(ends + (batch * segments + segment) * STATES * channels + tile, g, mask=in_tile)
    tl.store(elapsed + (batch * segments + segment) * channels + e, passed, mask=in_e)


@triton.jit
def backward(
    x, dt, z, dy, B, C, A, D, bias, resets, checkpoints, last, scratch, dx, ddt, dz, y, dA, dD, dbias, partial, first,
    length, channels, segments, segment_rows,
    STATES: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Walk a segment back in time from the gradient of the state after it.

    The states of a chunk are computed twice: once to leave the state before every ROWS rows in `scratch`, then ROWS at
    a time to be held in registers. Sums over channels leave a part for each block, sums over time one for each segment.
    """
    block, batch, segment, start, end = _place(length, channels, segments, segment_rows, BLOCK)
    e, in_e, n, tile, in_tile = _tile(block, channels, STATES, N, BLOCK)
    A = tl.load(A + tile, mask=in_tile, other=0.0)
    D, bias = _channel(D, e, in_e), _channel(bias, e, in_e)
    walk = batch * segments + segment
    scratch += tl.program_id(0).to(tl.int64) * (CHUNK // ROWS * N * BLOCK)
    scratch += tl.arange(0, N)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    partial += (batch * tl.cdiv(channels, BLOCK) + block) * length * 2 * STATES + n
    g = tl.zeros([N, BLOCK], tl.float32)
    if last is not None:
        g = tl.load(last + walk * STATES * channels + tile, mask=in_tile, other=0.0)
    sum_A, sum_D, sum_bias = tl.zeros_like(g), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for chunk in range(tl.cdiv(end - start, CHUNK) - 1, -1, -1):
        begin = start + chunk * CHUNK
        groups = tl.cdiv(tl.minimum(end - begin, CHUNK), ROWS)
        kept = (batch * tl.cdiv(length, CHUNK) + begin // CHUNK) * STATES * channels
        h = tl.load(checkpoints + kept + tile, mask=in_tile, other=0.0)
        for group in range(groups - 1):
            tl.store(scratch + group * N * BLOCK, h)
            t = begin + group * ROWS
            dts = load_rows(dt, batch, t, end, e, channels, ROWS)
            xs = load_rows(x, batch, t, end, e, channels, ROWS)
            Bs = load_rows(B, batch, t, end, n, STATES, ROWS)
            for i in tl.static_range(ROWS):
                _, delta = _biased_step(dts[i], bias, SOFTPLUS)
                keep = _keeps(resets, batch, length, t + i, end)
                h = _advance(h, A, Bs[i].to(tl.float32), delta, dt, xs[i].to(tl.float32), resets, keep)
        tl.store(scratch + (groups - 1) * N * BLOCK, h)
        tl.debug_barrier()
        for group in range(groups - 1, -1, -1):
            t = begin + group * ROWS
            row = (batch * length + t) * channels
            dts = load_rows(dt, batch, t, end, e, channels, ROWS)
            xs = load_rows(x, batch, t, end, e, channels, ROWS)
            Bs = load_rows(B, batch, t, end, n, STATES, ROWS)
            Cs = load_rows(C, batch, t, end, n, STATES, ROWS)
            dys = load_rows(dy, batch, t, end, e, channels, ROWS)
            zs = dys
            if z is not None:
                zs = load_rows(z, batch, t, end, e, channels, ROWS)
            hs = (tl.load(scratch + group * N * BLOCK),)
            for i in tl.static_range(ROWS - 1):
                _, delta = _biased_step(dts[i], bias, SOFTPLUS)
                keep = _keeps(resets, batch, length, t + i, end)
                hs += (_advance(hs[i], A, Bs[i].to(tl.float32), delta, dt, xs[i].to(tl.float32), resets, keep),)
            for i in tl.static_range(ROWS - 1, -1, -1):
                live = t + i < end
                # read again, or the compiler would keep the decays of all ROWS rows, which do not fit into registers
                in_row, in_states = below(e, channels, live), below(n, STATES, live)
                x_E = load_row(x, batch, t + i, e, in_row)
                B_N, C_N = load_row(B, batch, t + i, n, in_states), Cs[i].to(tl.float32)
                v, delta = _biased_step(load_row(dt, batch, t + i, e, in_row), bias, SOFTPLUS)
                delta = tl.where(live, delta, 0.0)
                dp = _gated(dys[i], None if z is None else zs[i])
                h_before = hs[i]
                if resets is not None:
                    keep = _keeps(resets, batch, length, t + i, end)
                    h_before = tl.where(keep, h_before, 0.0)
                a = _decay(delta, A, dt)
                h = a * h_before + (delta * x_E)[None, :] * B_N[:, None]
                g += C_N[:, None] * dp[None, :]
                if dz is not None:
                    out = tl.sum(h * C_N[:, None], 0) + D * x_E
                    gate = zs[i].to(tl.float32)
                    slope = dys[i].to(tl.float32) * out * silu_slope(gate)
                    tl.store(dz[0] + batch * dz[1] + (t + i) * dz[2] + e, slope, mask=in_row)
                    if y is not None:
                        tl.store(y + row + i * channels + e, out * gate * sigmoid(gate), mask=in_row)
                tl.store(partial + (t + i) * 2 * STATES, tl.sum(g * (delta * x_E)[None, :], 1), mask=in_states)
                tl.store(partial + (t + i) * 2 * STATES + STATES, tl.sum(h * dp[None, :], 1), mask=in_states)
                gB = tl.sum(g * B_N[:, None], 0)
                g *= a
                through = g * h_before
                sum_A += through * delta[None, :]
                dv = x_E * gB + LN2 * tl.sum(through * A, 0)
                if SOFTPLUS:
                    dv *= sigmoid(v)
                tl.store(dx + row + i * channels + e, delta * gB + D * dp, mask=in_row)
                tl.store(ddt + row + i * channels + e, dv, mask=in_row)
                sum_D += dp * x_E
                sum_bias += tl.where(live, dv, 0.0)
                if resets is not None:
                    g = tl.where(keep, g, 0.0)
        tl.debug_barrier()
    tl.store(dA + walk * STATES * channels + tile, sum_A, mask=in_tile)
    tl.store(dD + walk * channels + e, sum_D, mask=in_e)
    tl.store(dbias + walk * channels + e, sum_bias, mask=in_e)
    if first is not None:
        tl.store(first + walk * STATES * channels + tile, g, mask=in_tile)


@triton.jit
def step(
    state, x, dt, z, B, C, A, D, bias, y, channels,
    STATES: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One position: `state`, a tuple of a pointer and strides of rows, channels and states, is updated in place."""
    blocks = tl.cdiv(channels, BLOCK)
    block, batch = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    e, in_e, n, tile, in_tile = _tile(block, channels, STATES, N, BLOCK)
    x_E, B_N = load_row(x, batch, 0, e, in_e), load_row(B, batch, 0, n, n < STATES)
    _, delta = _biased_step(load_row(dt, batch, 0, e, in_e), _channel(bias, e, in_e), SOFTPLUS)
    A = tl.load(A + tile, mask=in_tile, other=0.0)
    here = state[0] + batch * state[1] + e[None, :] * state[2] + n[:, None] * state[3]
    h = _advance(tl.load(here, mask=in_tile, other=0.0), A, B_N, delta, dt, x_E, None, True)
    tl.store(here, h, mask=in_tile)
    out = tl.sum(h * load_row(C, batch, 0, n, n < STATES)[:, None], 0) + _channel(D, e, in_e) * x_E
    if z is not None:
        gate = load_row(z, batch, 0, e, in_e)
        out *= gate * sigmoid(gate)
    tl.store(y + batch * channels + e, out, mask=in_e)
