"""Functions of float32 vectors for CPU kernels: exponentials, sigmoid, softplus and the transposing sum.

Derivations and error bounds of the polynomials: docs/kernels.md, "CPU: the functions".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from llvmlite import ir

from mambabyte.ops.vector_ir import float32
from mambabyte.ops.vector_values import I32, Vec

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
# 2^f on [-1/2, 1/2] with p(0) = 1, fitted to the decay rate: |log2 p(f) - f| <= 5e-7 |f|.
EXP2 = (1.0, 0.6931470632553101, 0.24022358655929565, 0.05550665408372879, 0.009665878489613533, 0.0013266975292935967)
# log(1 + e) / e on [0, 1], relative error 5e-9 before rounding.
LOG1P = (
    1.0, -0.4999990165233612, 0.3332996368408203, -0.24954132735729218, 0.19675937294960022,
    -0.15305587649345398, 0.1060364618897438, -0.05695945397019386, 0.01985142007470131, -0.0032440158538520336,
)  # fmt: skip
LOG2E_REST = LOG2E - float32(LOG2E)
# exponents whose power is a normal number
LOWEST, HIGHEST = -126.0, 127.99
ROUND_TO_NEAREST, IN_THE_CURRENT_MODE = 8, 4  # immediates of vreduceps and vscalefps


def fma(a: Vec, b: Vec | float, c: Vec | float) -> Vec:
    """a * b + c with one rounding."""
    f = a.f
    return Vec(f, f.intrinsic("llvm.fma", f.floats, [a.value, f.vec(b).value, f.vec(c).value], "{0}"))


def maximum(a: Vec, b: Vec | float) -> Vec:
    """The larger of the two; NaN where `a` is NaN."""
    b = a.f.vec(b)
    return a.f.select(a.compare("<", b), b, a)


def minimum(a: Vec, b: Vec | float) -> Vec:
    """The smaller of the two; NaN where `a` is NaN."""
    b = a.f.vec(b)
    return a.f.select(a.compare(">", b), b, a)


def absolute(a: Vec) -> Vec:
    """|a|."""
    return Vec(a.f, a.f.intrinsic("llvm.fabs", a.f.floats, [a.value], "{0}"))


def polynomial(x: Vec, coefficients: Sequence[float]) -> Vec:
    """Sum of coefficients[k] x^k by Horner's rule."""
    value = x.f.vec(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = fma(value, x, c)
    return value


def exp2(x: Vec) -> Vec:
    """2^x for any x: x = r + f with r whole and |f| <= 1/2, a polynomial for 2^f, and r added to its exponent.

    -inf gives 0 (without AVX-512: 2^-126, the smallest that it returns), and NaN stays NaN.
    """
    if x.f.target.avx512:
        # vreduceps of an infinity is 0 and vscalefps saturates, so that no x needs a clamp
        fraction = _reduce_avx512(x)
        return _scale_avx512(polynomial(fraction, EXP2), x - fraction)
    clamped = minimum(maximum(x, LOWEST), HIGHEST)
    whole = _rint(clamped)
    return _scale_portable(polynomial(clamped - whole, EXP2), whole)


def exp(x: Vec) -> Vec:
    """e^x, relative error below 3e-7 for any x, where exp2(x log2(e)) would lose what the product rounds away.

    Saturates at 2^-126 and 2^127.99.
    """
    x = minimum(maximum(x, LOWEST / LOG2E), HIGHEST / LOG2E)
    whole = _rint(x * LOG2E)
    power = polynomial(fma(x, LOG2E_REST, fma(x, LOG2E, -whole)), EXP2)
    return _scale_avx512(power, whole) if x.f.target.avx512 else _scale_portable(power, whole)


def _rint(x: Vec) -> Vec:
    return Vec(x.f, x.f.intrinsic("llvm.rint", x.f.floats, [x.value], "{0}"))


def _reduce_avx512(x: Vec) -> Vec:
    f, every = x.f, ir.Constant(ir.IntType(16), -1)
    arguments = [x.value, f.i32(ROUND_TO_NEAREST), x.value, every, f.i32(IN_THE_CURRENT_MODE)]
    return Vec(f, f.intrinsic("llvm.x86.avx512.mask.reduce.ps.512", f.floats, arguments))


def _scale_avx512(power: Vec, exponent: Vec) -> Vec:
    f, every = power.f, ir.Constant(ir.IntType(16), -1)
    arguments = [power.value, exponent.value, power.value, every, f.i32(IN_THE_CURRENT_MODE)]
    return Vec(f, f.intrinsic("llvm.x86.avx512.mask.scalef.ps.512", f.floats, arguments))


def _scale_portable(power: Vec, exponent: Vec) -> Vec:
    """power * 2^exponent where that is a normal number; NaN where power is NaN."""
    f, b = power.f, power.f.b
    shifted = b.shl(b.fptosi(exponent.value, f.ints), f.bits(23))
    scaled = Vec(f, b.bitcast(b.add(b.bitcast(power.value, f.ints), shifted), f.floats))
    return f.select(b.fcmp_unordered("uno", power.value, power.value), power, scaled)


def sigmoid(x: Vec) -> Vec:
    """1 / (1 + e^-x)."""
    return 1.0 / (exp(-x) + 1.0)


def softplus_and_slope(x: Vec) -> tuple[Vec, Callable[[], Vec]]:
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and a function that writes its slope sigmoid(x)."""
    small = exp(-absolute(x))
    value = fma(small, polynomial(small, LOG1P), maximum(x, 0.0))
    return value, lambda: x.f.select(x.compare("<", 0.0), small, x.f.vec(1.0)) / (small + 1.0)


def sums(vectors: Sequence[Vec]) -> Vec:
    """Lane i is the sum over the lanes of vectors[i]; at most as many vectors as lanes, lanes past the last are zero.

    A transposing butterfly: every stage halves the vectors, about three instructions a vector in all.
    """
    f, lanes = vectors[0].f, vectors[0].f.target.lanes
    assert len(vectors) <= lanes
    rows = [*vectors, *(f.vec(0.0) for _ in range(lanes - len(vectors)))]
    stride = 1
    while stride < lanes:
        low = [lane + lanes - stride if lane & stride else lane for lane in range(lanes)]
        high = [lane + lanes if lane & stride else lane + stride for lane in range(lanes)]
        pairs = zip(rows[::2], rows[1::2], strict=True)
        rows = [_shuffle(even, odd, low) + _shuffle(even, odd, high) for even, odd in pairs]
        stride *= 2
    return rows[0]


def _shuffle(a: Vec, b: Vec, lanes: Sequence[int]) -> Vec:
    """The chosen lanes of a followed by b."""
    chosen = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
    return Vec(a.f, a.f.b.shuffle_vector(a.value, b.value, chosen))


def total(a: Vec) -> Vec:
    """The sum over the lanes, in every lane."""
    return _over_lanes(a, lambda one, other: one + other)


def largest(a: Vec) -> Vec:
    """The largest lane, in every lane."""
    return _over_lanes(a, maximum)


def _over_lanes(a: Vec, combine: Callable[[Vec, Vec], Vec]) -> Vec:
    lanes, stride = a.f.target.lanes, 1
    while stride < lanes:
        a = combine(a, _shuffle(a, a, [lane ^ stride for lane in range(lanes)]))
        stride *= 2
    return a


def square_root(a: Vec) -> Vec:
    """The square root, correctly rounded."""
    return Vec(a.f, a.f.intrinsic("llvm.sqrt", a.f.floats, [a.value], "{0}"))
