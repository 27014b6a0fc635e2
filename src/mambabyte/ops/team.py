"""Kernels whose threads work on one task together and meet at barriers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llvmlite.binding as llvm
from llvmlite import ir

from mambabyte.ops.vector_ir import I64, Function, Int, Pointer

# Looks at the barrier before a waiting thread lets others run. A look takes about a nanosecond; a thread that waits for
# one that the system has put aside would otherwise burn its time slice.
LOOKS = 2000


def as_team(f: Function, body: Callable[[Int], None]) -> None:
    """Write the body of `f`: each thread of the call runs body(its number) once, numbers from 0 up."""
    body(Int(f, f.b.atomic_rmw("add", f.counter, ir.Constant(I64, 1), "monotonic")))
    f.b.ret_void()


def barrier(f: Function, arrivals: Pointer, threads: Int) -> None:
    """Wait until all threads have come here. `arrivals` is a 64-bit count, zero before the call, that they share."""
    b = f.b
    arrived = Int(f, b.atomic_rmw("add", arrivals.value, ir.Constant(I64, 1), "acq_rel"))
    everyone = (arrived // threads + 1) * threads

    def waiting(_: list) -> ir.Value:
        return Int(f, b.load_atomic(arrivals.value, "acquire", 8, typ=I64)).compare("<", everyone)

    def look_again(carry: list) -> list:
        f.when((carry[0] % LOOKS).compare("==", LOOKS - 1), lambda: _let_others_run(f))
        return [carry[0] + 1]

    f.repeat_while([f.number(0)], waiting, look_again)


def _let_others_run(f: Function) -> None:
    name = "mambabyte_let_others_run"
    declared = f.module.globals.get(name)
    if declared is None:
        llvm.add_symbol(name, _yield_address())
        declared = ir.Function(f.module, ir.FunctionType(ir.IntType(32), []), name)
    f.b.call(declared, [])


def _yield_address() -> int:
    library = ctypes.windll.kernel32 if hasattr(ctypes, "windll") else ctypes.CDLL(None)
    function = getattr(library, "SwitchToThread", None) or library.sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
