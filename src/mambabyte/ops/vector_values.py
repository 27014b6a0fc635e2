"""What CPU kernels compute with: indices, vectors and pointers, whose operators write LLVM IR into a `Function`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llvmlite import ir

if TYPE_CHECKING:
    from mambabyte.ops.vector_ir import Function

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
PTR = ir.PointerType()


@dataclass(frozen=True)
class Element:
    """What a pointer points to: the type in memory and its size in bytes. Vectors are float32 once loaded."""

    name: str
    type: ir.Type
    size: int


FLOAT = Element("float32", F32, 4)
BFLOAT = Element("bfloat16", I16, 2)
BYTE = Element("uint8", I8, 1)
INDEX = Element("int64", I64, 8)


class Int:
    """A 64-bit index with arithmetic; Python ints mix in."""

    def __init__(self, f: Function, value: ir.Value):
        self.f, self.value = f, value

    def _apply(self, instruction: str, other: Int | int, *, swap: bool = False) -> Int:
        a, b = self.value, self.f.number(other).value
        if swap:
            a, b = b, a
        return Int(self.f, getattr(self.f.b, instruction)(a, b))

    def __add__(self, other: Int | int) -> Int:
        return self._apply("add", other)

    def __sub__(self, other: Int | int) -> Int:
        return self._apply("sub", other)

    def __rsub__(self, other: int) -> Int:
        return self._apply("sub", other, swap=True)

    def __mul__(self, other: Int | int) -> Int:
        return self._apply("mul", other)

    def __floordiv__(self, other: Int | int) -> Int:
        return self._apply("udiv", other)

    def __mod__(self, other: Int | int) -> Int:
        return self._apply("urem", other)

    __radd__, __rmul__ = __add__, __mul__

    def compare(self, relation: str, other: Int | int) -> ir.Value:
        """The bit `self relation other`, relation one of < <= == != >= >."""
        return self.f.b.icmp_signed(relation, self.value, self.f.number(other).value)

    def minimum(self, other: Int | int) -> Int:
        """The smaller of the two."""
        return self.f.select(self.compare("<", other), self, self.f.number(other))


class Vec:
    """A vector of float32 lanes with arithmetic; Python floats mix in."""

    def __init__(self, f: Function, value: ir.Value):
        self.f, self.value = f, value

    def _apply(self, instruction: str, other: Vec | float, *, swap: bool = False) -> Vec:
        a, b = self.value, self.f.vec(other).value
        if swap:
            a, b = b, a
        return Vec(self.f, getattr(self.f.b, instruction)(a, b))

    def __add__(self, other: Vec | float) -> Vec:
        return self._apply("fadd", other)

    def __sub__(self, other: Vec | float) -> Vec:
        return self._apply("fsub", other)

    def __rsub__(self, other: float) -> Vec:
        return self._apply("fsub", other, swap=True)

    def __mul__(self, other: Vec | float) -> Vec:
        return self._apply("fmul", other)

    def __truediv__(self, other: Vec | float) -> Vec:
        return self._apply("fdiv", other)

    def __rtruediv__(self, other: float) -> Vec:
        return self._apply("fdiv", other, swap=True)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Vec:
        return Vec(self.f, self.f.b.fneg(self.value))

    def compare(self, relation: str, other: Vec | float) -> ir.Value:
        """A mask: the bit of a lane says whether `self relation other` there (false for NaN)."""
        return self.f.b.fcmp_ordered(relation, self.value, self.f.vec(other).value)

    def bits(self) -> Ints:
        """The bits of every lane."""
        return Ints(self.f, self.f.b.bitcast(self.value, self.f.ints))

    def rounded(self) -> Ints:
        """The nearest integers, ties to even; lanes must lie within 32 bits."""
        f = self.f
        return Ints(f, f.b.fptosi(f.intrinsic("llvm.rint", f.floats, [self.value], "{0}"), f.ints))


class Ints:
    """A vector of 32-bit integers, as many as a `Vec` has lanes."""

    def __init__(self, f: Function, value: ir.Value):
        self.f, self.value = f, value

    def _apply(self, instruction: str, operand: int) -> Ints:
        return Ints(self.f, getattr(self.f.b, instruction)(self.value, self.f.bits(operand)))

    def plus(self, operand: int) -> Ints:
        """Add a number to every lane."""
        return self._apply("add", operand)

    def shift_left(self, places: int) -> Ints:
        """Shift the bits of every lane; zeros come in."""
        return self._apply("shl", places)

    def shift_right(self, places: int) -> Ints:
        """Shift the bits of every lane; zeros come in."""
        return self._apply("lshr", places)

    def mask(self, bits: int) -> Ints:
        """Keep these bits of every lane."""
        return self._apply("and_", bits)

    def as_floats(self) -> Vec:
        """The float32 lanes that have these bits."""
        return Vec(self.f, self.f.b.bitcast(self.value, self.f.floats))

    def to_floats(self) -> Vec:
        """The same numbers in float32, rounded to nearest."""
        return Vec(self.f, self.f.b.sitofp(self.value, self.f.floats))

    def store_bytes(self, place: Pointer) -> None:
        """Write the lowest byte of every lane, one after the other."""
        b = self.f.b
        b.store(b.trunc(self.value, ir.VectorType(I8, self.f.target.lanes)), place.value, align=1)


class Pointer:
    """An address of elements; adding an `Int` moves it by that many elements."""

    def __init__(self, f: Function, value: ir.Value, element: Element):
        self.f, self.value, self.element = f, value, element

    def __add__(self, offset: Int | int) -> Pointer:
        b = self.f.b
        return Pointer(
            self.f, b.gep(self.value, [self.f.number(offset).value], source_etype=self.element.type), self.element
        )

    def load(self, mask: ir.Value | None = None) -> Vec:
        """The vector that starts here, as float32; lanes outside the mask are not touched and read zero."""
        f, lanes = self.f, self.f.target.lanes
        kind = ir.VectorType(self.element.type, lanes)
        if mask is None:
            raw = f.b.load(self.value, typ=kind, align=self.element.size)
        else:
            arguments = [self.value, f.i32(self.element.size), mask, ir.Constant(kind, None)]
            raw = f.intrinsic("llvm.masked.load", kind, arguments, "{3}.p0")
        return Vec(f, f.to_float(raw, self.element))

    def store(self, vec: Vec, mask: ir.Value | None = None) -> None:
        """Write a vector here, rounded to the element type; lanes outside the mask are not touched."""
        f = self.f
        raw = f.from_float(vec.value, self.element)
        if mask is None:
            f.b.store(raw, self.value, align=self.element.size)
        else:
            f.intrinsic("llvm.masked.store", ir.VoidType(), [raw, self.value, f.i32(self.element.size), mask], "{0}.p0")

    def splat(self) -> Vec:
        """The one element here in every lane."""
        return self.f.splat(self.f.b.load(self.value, typ=self.element.type, align=self.element.size), self.element)

    def of(self, element: Element) -> Pointer:
        """The same address, of other elements."""
        return Pointer(self.f, self.value, element)

    def splat_word(self) -> Ints:
        """The 32 bits here in every lane."""
        f = self.f
        return Ints(f, f.broadcast(f.b.load(self.value, typ=I32, align=4), f.ints))

    def gather(self, stride: Int | int, count: Int | int) -> Vec:
        """Lane i is the element i * stride away, i below `count`; lanes past that repeat the last one."""
        f = self.f
        raw: ir.Value = ir.Constant(ir.VectorType(self.element.type, f.target.lanes), None)
        last = f.number(count) - 1
        for lane in range(f.target.lanes):
            at = self + f.number(lane).minimum(last) * stride
            raw = f.b.insert_element(raw, f.b.load(at.value, typ=self.element.type), f.i32(lane))
        return Vec(f, f.to_float(raw, self.element))

    def integer(self) -> Int:
        """The 64-bit integer here."""
        return Int(self.f, self.f.b.load(self.value, typ=I64))

    def bit(self) -> ir.Value:
        """Whether the byte here is not zero."""
        return self.f.b.icmp_unsigned("!=", self.f.b.load(self.value, typ=I8), ir.Constant(I8, 0))

    def prefetch(self, *, write: bool = False) -> None:
        """Ask for the line of this address into the second-level cache; an address outside memory is harmless."""
        f = self.f
        f.intrinsic("llvm.prefetch", ir.VoidType(), [self.value, f.i32(int(write)), f.i32(2), f.i32(1)], "p0")


def arrays(element: Element, *names: str) -> dict[str, Element]:
    """Pointer arguments of one element type, for `Function`."""
    return dict.fromkeys(names, element)
