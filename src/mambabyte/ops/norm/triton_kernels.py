"""The Triton kernels of the norm: a row lies in one program."""
# mypy: disable-error-code="no-untyped-def"
# Triton compiles these functions; what their arguments are is said by the call.

import triton
import triton.language as tl


@triton.jit
def forward(
    x, weight, bias, residual, eps, y, stream, rstd, mean, width, BLOCK: tl.constexpr, LAYER: tl.constexpr
):  # fmt: skip
    """One row of y and the stream, with the reciprocal deviation and the mean (0 unless LAYER) that backward needs."""
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    inside = e < width
    s = tl.load(x + row * width + e, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        s += tl.load(residual + row * width + e, mask=inside, other=0.0)
    tl.store(stream + row * width + e, s, mask=inside)
    average = 0.0
    if LAYER:
        average = tl.sum(s, 0) / width
        s = tl.where(inside, s - average, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(s * s, 0) / width + eps)
    out = s * scale * tl.load(weight + e, mask=inside, other=0.0)
    if bias is not None:
        out += tl.load(bias + e, mask=inside, other=0.0)
    tl.store(y + row * width + e, out, mask=inside)
    tl.store(rstd + row, scale)
    tl.store(mean + row, average)


@triton.jit
def backward(
    dy, dstream, stream, weight, rstd, mean, dsum, partial, rows, width, BLOCK: tl.constexpr, LAYER: tl.constexpr
):  # fmt: skip
    """The gradients of every so manieth row of the stream, and these rows' share of dweight and dbias."""
    e = tl.arange(0, BLOCK)
    inside = e < width
    weight = tl.load(weight + e, mask=inside, other=0.0)
    dweight, dbias = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        g = tl.load(dy + row * width + e, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + row)
        s = tl.load(stream + row * width + e, mask=inside, other=0.0)
        unit = (s - tl.load(mean + row)) * scale
        dweight += g * unit
        dbias += g
        g *= weight
        ds = g - unit * (tl.sum(g * unit, 0) / width)
        if LAYER:
            ds -= tl.sum(g, 0) / width
        ds *= scale
        if dstream is not None:
            ds += tl.load(dstream + row * width + e, mask=inside, other=0.0)
        tl.store(dsum + row * width + e, ds, mask=inside)
    partial += tl.program_id(0) * 2 * width + e
    tl.store(partial, dweight, mask=inside)
    tl.store(partial + width, dbias, mask=inside)
