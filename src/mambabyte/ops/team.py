"""Writing kernels whose threads work on one task together and meet at barriers. `mambabyte.ops.crew` runs them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llvmlite.binding as llvm
from llvmlite import ir

from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_values import I64, PTR, Int, Pointer

# Looks at a word of memory, of about a nanosecond each, before a waiting thread lets others run: longer than threads
# wait that share work evenly. One that waits for a thread which the system has put aside would burn its time slice; one
# that gives way too early would lose milliseconds to a busy neighbour at every barrier.
LOOKS = 100_000
FOR_EVER = 1 << 62
# What a team shares, in 64-bit words: how many came to barriers, how many threads it has, how many took their number,
# how many waits were so long that they let others run.
ARRIVALS, SIZE, NUMBERS, STALLS = range(4)
TEAM_WORDS = 4


def as_team(f: Function, body: Callable[[Int, Int], None]) -> None:
    """Write the body of `f`: each thread runs body(its number, how many they are) once, numbers from 0 up.

    `f` has a pointer `team` to TEAM_WORDS words. Beside the kernel, `entry_name(f)` is written: it takes the kernel's
    arguments from an array of 64-bit words.
    """
    team = f.pointer("team")
    body(add(f, team + NUMBERS, 1), (team + SIZE).integer())
    f.b.ret_void()
    entry = ir.Function(f.module, ir.FunctionType(ir.VoidType(), [PTR]), entry_name(f))
    b = ir.IRBuilder(entry.append_basic_block())
    places = [b.gep(entry.args[0], [ir.Constant(I64, i)], source_etype=I64) for i in range(len(f.function.args))]
    b.call(f.function, [b.load(at, typ=a.type) for at, a in zip(places, f.function.args, strict=True)])
    b.ret_void()


def entry_name(f: Function) -> str:
    """The name of the function that calls a team's kernel with the arguments that an array holds."""
    return f"{f.name}_entry"


def barrier(f: Function, threads: Int, work: Int | int = 1) -> None:
    """Wait until all threads of the team have come here; others may run after `work` (or 1) times LOOKS looks."""
    team, work = f.pointer("team"), f.number(work)
    work = f.select(work.compare("<", 1), f.number(1), work)
    everyone = (add(f, team + ARRIVALS, 1) // threads + 1) * threads

    def stall() -> None:
        add(f, team + STALLS, 1)

    wait_while(f, lambda: read(f, team + ARRIVALS).compare("<", everyone), work=work, rested=stall)


def wait_while(
    f: Function,
    condition: Callable[[], ir.Value],
    *,
    looks: int = FOR_EVER,
    work: Int | int = 1,
    rested: Callable[[], None] | None = None,
) -> None:
    """Look until the condition is false, at most so many times; `work` and `rested` as for `rest`."""

    def waiting(carry: list) -> ir.Value:
        return f.b.and_(condition(), carry[0].compare("<", looks))

    def look_again(carry: list) -> list:
        rest(f, carry[0], work, rested)
        return [carry[0] + 1]

    f.repeat_while([f.number(0)], waiting, look_again)


def rest(f: Function, looks: Int, work: Int | int = 1, rested: Callable[[], None] | None = None) -> None:
    """Let other threads of the machine run after every `work` times LOOKS looks; then write `rested`, if given."""
    most = f.number(work) * LOOKS

    def pause() -> None:
        _let_others_run(f)
        if rested is not None:
            rested()

    f.when((looks % most).compare("==", most - 1), pause)


# words that threads share


def add(f: Function, word: Pointer, amount: int) -> Int:
    """Add to a word and return what it was: writes before it are seen by whoever reads the sum."""
    return Int(f, f.b.atomic_rmw("add", word.value, ir.Constant(I64, amount), "acq_rel"))


def read(f: Function, word: Pointer) -> Int:
    """A word, and with it what its writer wrote before."""
    return Int(f, f.b.load_atomic(word.value, "acquire", 8, typ=I64))


def write(f: Function, word: Pointer, value: Int | int) -> None:
    """Set a word: whoever reads it sees what was written before."""
    f.b.atomic_rmw("xchg", word.value, f.number(value).value, "release")


def swap(f: Function, word: Pointer, expected: int, new: int) -> ir.Value:
    """Set a word to `new` if it is `expected`; returns the bit whether it was."""
    found = f.b.cmpxchg(word.value, ir.Constant(I64, expected), ir.Constant(I64, new), "acq_rel", "acquire")
    return f.b.extract_value(found, 1)


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
