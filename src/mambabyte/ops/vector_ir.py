"""A small vocabulary for writing CPU kernels as LLVM vector IR: values, constants, loops and a few functions.

A kernel is a Python function that adds, multiplies and stores `Vec` and `Int` values; running it once writes the IR,
and `mambabyte.ops.native` compiles that with llvmlite alone. A `Vec` holds `target.lanes` float32 values, one channel
in each lane wherever the op has channels, so that no kernel needs a sum across lanes in its inner loop.
The values are in `mambabyte.ops.vector_values`, functions of vectors (exp2, sigmoid, ...) in
`mambabyte.ops.vector_math`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from llvmlite import ir

from mambabyte.ops.target import Target
from mambabyte.ops.vector_values import BFLOAT, F32, FLOAT, I8, I16, I32, I64, PTR, Element, Int, Ints, Pointer, Vec

Carry = Sequence[Vec | Ints | Int]


class Function:
    """One kernel being written: its arguments by name, constants, control flow and the functions of a vector.

    The compiled function takes a task counter, a scratch buffer, the pointers and the integers, in this order. Threads
    that call it together share the counter: each takes the next task until none is left, so results cannot depend on
    how many there are as long as a task owns what it writes.
    """

    def __init__(self, name: str, target: Target, pointers: dict[str, Element], integers: Sequence[str]):
        self.name, self.target = name, target
        self.pointers, self.integers = dict(pointers), tuple(integers)
        self.module = ir.Module(name)
        self.scratch_bytes = 0
        kinds = [PTR, PTR, *(PTR for _ in pointers), *(I64 for _ in integers)]
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.b = ir.IRBuilder(self.function.append_basic_block())
        counter, scratch, *rest = self.function.args
        self.counter, self._scratch = counter, scratch
        pairs = zip(self.pointers.items(), rest, strict=False)
        self._arguments: dict[str, Pointer | Int] = {n: Pointer(self, value, kind) for (n, kind), value in pairs}
        self._arguments |= zip(self.integers, (Int(self, value) for value in rest[len(pointers) :]), strict=True)

    def pointer(self, name: str) -> Pointer:
        """The pointer argument of this name."""
        argument = self._arguments[name]
        assert isinstance(argument, Pointer)
        return argument

    def index(self, name: str) -> Int:
        """The integer argument of this name."""
        argument = self._arguments[name]
        assert isinstance(argument, Int)
        return argument

    def scratch(self, vectors: int) -> Pointer:
        """Memory of the calling thread for this many vectors; what it holds at first is undefined."""
        offset = self.scratch_bytes // FLOAT.size
        self.scratch_bytes += vectors * self.target.lanes * FLOAT.size
        return Pointer(self, self._scratch, FLOAT) + offset

    def number(self, value: Int | int) -> Int:
        """An index constant."""
        return value if isinstance(value, Int) else Int(self, ir.Constant(I64, value))

    def i32(self, value: int) -> ir.Constant:
        """A 32-bit constant, for intrinsics."""
        return ir.Constant(I32, value)

    def vec(self, value: Vec | float) -> Vec:
        """The constant in every lane."""
        if isinstance(value, Vec):
            return value
        return Vec(self, ir.Constant(self.floats, [ir.Constant(F32, float32(value))] * self.target.lanes))

    @property
    def floats(self) -> ir.VectorType:
        """The type of a `Vec`."""
        return ir.VectorType(F32, self.target.lanes)

    @property
    def ints(self) -> ir.VectorType:
        """The type of a `Vec`'s bits."""
        return ir.VectorType(I32, self.target.lanes)

    def intrinsic(
        self, name: str, result: ir.Type, arguments: Sequence[ir.Value], suffix: str | None = None
    ) -> ir.Value:
        """Call an LLVM intrinsic; in `suffix`, appended to its name, {i} stands for the mangled type of argument i."""
        kinds = [a.type for a in arguments]
        if suffix is not None:
            name += "." + suffix.format(*(_mangled(kind) for kind in kinds))
        declared = self.module.globals.get(name)
        if declared is None:
            declared = ir.Function(self.module, ir.FunctionType(result, kinds), name)
        return self.b.call(declared, arguments)

    # control flow

    def loop(
        self,
        begin: Int | int,
        end: Int | int,
        carry: Carry,
        body: Callable[[Int, list], Carry],
        *,
        reverse: bool = False,
    ) -> list:
        """`for i in range(begin, end): carry = body(i, carry)`, or from end - 1 down; returns the last carry."""
        begin, end = self.number(begin), self.number(end)

        def next_round(carried: list) -> Carry:
            i = carried[0]
            return [i + 1, *body(end - 1 - (i - begin) if reverse else i, carried[1:])]

        return self.repeat_while([begin, *carry], lambda carried: carried[0].compare("<", end), next_round)[1:]

    def repeat_while(self, carry: Carry, condition: Callable[[list], ir.Value], body: Callable[[list], Carry]) -> list:
        """`while condition(carry): carry = body(carry)`; returns the last carry."""
        b = self.b
        before, head, inside, after = b.block, *(self.function.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        phis = [b.phi(item.value.type) for item in carry]
        for phi, item in zip(phis, carry, strict=True):
            phi.add_incoming(item.value, before)
        wrapped = [type(item)(self, phi) for item, phi in zip(carry, phis, strict=True)]
        bit = condition(list(wrapped))
        b.cbranch(bit, inside, after)
        b.position_at_end(inside)
        for phi, item in zip(phis, body(list(wrapped)), strict=True):
            phi.add_incoming(item.value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return wrapped

    def either(self, bit: ir.Value, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Run `then` where the bit is set and `otherwise` where it is not."""
        with self.b.if_else(bit) as (yes, no):
            with yes:
                then()
            with no:
                otherwise()

    def when(self, bit: ir.Value, then: Callable[[], None]) -> None:
        """Run `then` where the bit is set."""
        with self.b.if_then(bit):
            then()

    def for_each_task(self, tasks: Int, body: Callable[[Int], None]) -> None:
        """Take tasks 0..tasks-1 from the counter that all threads of this call share, then return."""
        b = self.b
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        task = Int(self, b.atomic_rmw("add", self.counter, ir.Constant(I64, 1), "monotonic"))
        b.cbranch(task.compare("<", tasks), inside, after)
        b.position_at_end(inside)
        body(task)
        b.branch(head)
        b.position_at_end(after)
        b.ret_void()

    # vectors

    def mask_below(self, count: Int) -> ir.Value:
        """The mask of the first `count` lanes."""
        b, kind = self.b, ir.VectorType(I64, self.target.lanes)
        lanes = ir.Constant(kind, list(range(self.target.lanes)))
        return b.icmp_signed("<", lanes, self.broadcast(count.value, kind))

    def select(self, bit: ir.Value, yes, no):  # type: ignore[no-untyped-def]
        """`yes` where the bit (or the lane's bit of a mask) is set, else `no`; two Ints, two Vecs or two Pointers."""
        value = self.b.select(bit, yes.value, no.value)
        return Pointer(self, value, yes.element) if isinstance(yes, Pointer) else type(yes)(self, value)

    def broadcast(self, scalar: ir.Value, kind: ir.VectorType) -> ir.Value:
        """A scalar in every lane of a vector of that type."""
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, self.i32(0))
        return self.b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, kind.count), None))

    def splat(self, scalar: ir.Value, element: Element) -> Vec:
        """A scalar as loaded from memory in every lane, as float32."""
        return Vec(self, self.to_float(self.broadcast(scalar, ir.VectorType(element.type, self.target.lanes)), element))

    def add_products_of_bytes(self, sums: Ints, unsigned: Ints, signed: Ints) -> Ints:
        """To each lane, add the four products of its bytes in `unsigned`, 0 to 255, and in `signed`, -128 to 127."""
        b, lanes = self.b, self.target.lanes
        if self.target.byte_products is not None:
            arguments = [sums.value, unsigned.value, signed.value]
            return Ints(self, self.intrinsic(self.target.byte_products, self.ints, arguments))
        eight, sixteen, wide = (ir.VectorType(kind, 4 * lanes) for kind in (I8, I16, I32))
        products = b.mul(
            b.zext(b.bitcast(unsigned.value, eight), sixteen), b.sext(b.bitcast(signed.value, eight), sixteen)
        )
        products, value = b.sext(products, wide), sums.value
        for k in range(4):
            places = ir.Constant(ir.VectorType(I32, lanes), [4 * lane + k for lane in range(lanes)])
            value = b.add(value, b.shuffle_vector(products, ir.Constant(wide, ir.Undefined), places))
        return Ints(self, value)

    def to_float(self, raw: ir.Value, element: Element) -> ir.Value:
        """Widen a loaded vector to float32."""
        if element is FLOAT:
            return raw
        assert element is BFLOAT, element  # the upper half of a float32
        wide = self.b.shl(self.b.zext(raw, self.ints), self.bits(16))
        return self.b.bitcast(wide, self.floats)

    def from_float(self, value: ir.Value, element: Element) -> ir.Value:
        """Round a float32 vector to what memory holds, to nearest even; NaN stays NaN."""
        if element is FLOAT:
            return value
        assert element is BFLOAT, element
        b = self.b
        bits = b.bitcast(value, self.ints)
        odd = b.and_(b.lshr(bits, self.bits(16)), self.bits(1))
        rounded = b.add(b.add(bits, odd), self.bits(0x7FFF))
        quiet = b.or_(bits, self.bits(0x400000))
        kept = b.select(b.fcmp_unordered("uno", value, value), quiet, rounded)
        return b.trunc(b.lshr(kept, self.bits(16)), ir.VectorType(I16, self.target.lanes))

    def bits(self, value: int) -> ir.Constant:
        """The 32-bit pattern in every lane."""
        return ir.Constant(self.ints, [value] * self.target.lanes)


def _mangled(kind: ir.Type) -> str:
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_mangled(kind.element)}"
    return "f32" if kind == F32 else "p0" if kind == PTR else f"i{kind.width}"


def float32(value: float) -> float:
    """The nearest float32."""
    return struct.unpack("f", struct.pack("f", value))[0]
