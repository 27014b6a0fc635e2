"""Running kernels of a team: on the calling thread and on helpers that stay awake for a moment between calls.

Waking a thread that sleeps takes 40 us and more, and a step of a small model lasts 250; one that is looking at a word
of memory begins at once. So a helper looks for the next call for about two milliseconds, as long as a drafter needs for
a guess, before it sleeps. The leader of a call counts in the helpers that are awake and works with these; what it
computes does not depend on how many they are. Beside a busy neighbour, threads that wait for each other are slower than
one: after a call in which a helper was not there or was put aside, the next ones are made alone.

A helper is ASLEEP, WAITING, CALLED (counted in) or WORKING. It moves itself from ASLEEP to WAITING and, when its
patience ends, back; the leader moves it from WAITING to CALLED and WORKING, and it returns to WAITING when it has
worked.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable

import torch
from llvmlite import ir

from mambabyte.ops.native import CORES, Kernel
from mambabyte.ops.target import host_target
from mambabyte.ops.team import (
    ARRIVALS,
    NUMBERS,
    SIZE,
    STALLS,
    TEAM_WORDS,
    entry_name,
    read,
    rest,
    swap,
    wait_while,
    write,
)
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_values import INDEX, PTR, Pointer, arrays

ASLEEP, WAITING, CALLED, WORKING = range(4)
# Looks at its word before a helper sleeps, and of a leader before it begins without a helper that it has woken.
PATIENCE, WAKING = 2_000_000, 200_000
# Calls made alone after one that was not helped: 1, 3, 7 and so on up to this many.
MOST_ALONE = 255
# The desk, in 64-bit words: what the next call runs, then the state of each helper on a cache line of its own.
ENTRY, ARGUMENTS, HELPERS, LINE = 0, 1, 8, 8
WORD_BYTES = 8
# The words of a team of one.
ALONE = [{SIZE: 1}.get(word, 0) for word in range(TEAM_WORDS)]


class TeamKernel:
    """A compiled kernel that `mambabyte.ops.team.as_team` has written."""

    def __init__(self, source: Function):
        assert source.scratch_bytes == 0, f"{source.name}: threads of a team have no scratch memory"
        self._kernel = Kernel(source)
        self.entry = self._kernel.address(entry_name(source))
        self.enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.entry)
        # behind the counter and the scratch memory of every kernel, which a team does not use
        self.places = {name: 2 + i for i, name in enumerate((*source.pointers, *source.integers))}


class Task:
    """A team's kernel and its arguments by name, tensors or integers, kept from call to call.

    A task runs once at a time; tasks of several threads run side by side, of which one at a time has helpers.
    """

    def __init__(self, kernel: TeamKernel, **arguments: torch.Tensor | int):
        assert kernel.places.keys() == {*arguments, "team"}, sorted(arguments)
        self._kernel = kernel
        self._kept: dict[str, torch.Tensor | int] = {}
        self._words = torch.zeros(2 + len(kernel.places), dtype=torch.int64)
        self._values, self._place = self._words.numpy(), self._words.data_ptr()
        team = torch.zeros(TEAM_WORDS, dtype=torch.int64)
        self.team, self._team = team.numpy(), team.data_ptr()
        self.set(team=team, **arguments)

    def set(self, **arguments: torch.Tensor | int) -> None:
        """Change some arguments."""
        for name, value in arguments.items():
            self._kept[name] = value
            self._values[self._kernel.places[name]] = value if isinstance(value, int) else value.data_ptr()

    def run(self, threads: int) -> None:
        """Run on this thread and at most `threads - 1` others, without the GIL."""
        helpers = min(threads, CORES) - 1
        if helpers < 1 or not _crew().help(self, helpers):
            self.team[:] = ALONE
            self._kernel.enter(self._place)

    def lead(self, desk: int, with_helpers: Kernel, helpers: int) -> bool:
        """Run with helpers who look at the desk; whether all of them were there all the time."""
        with_helpers.alone(desk, self._team, self._kernel.entry, self._place, helpers)
        return bool(self.team[SIZE] == helpers + 1 and self.team[STALLS] == 0)


class _Crew:
    """The helpers of this process, and what they look at."""

    def __init__(self) -> None:
        self._desk = torch.zeros(HELPERS + LINE * CORES, dtype=torch.int64)
        self._place = self._desk.data_ptr()
        self._lead, self._serve = Kernel(_lead()), Kernel(_serve())
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nobody helps yet. After a fork, this frees nothing: another thread may have held the compiler's lock."""
        self._one_call = threading.Lock()  # helpers of a call wait for each other: two calls cannot share them
        self._desk.numpy()[:] = 0
        self._helpers: dict[int, threading.Thread] = {}
        self._alone, self._last_alone = 0, 0  # calls that are still to be made alone, and how many they were

    def help(self, task: Task, helpers: int) -> bool:
        """Run the task with helpers; False, and nothing has run, if they are busy or the next calls are to be alone."""
        if not self._one_call.acquire(blocking=False):
            return False
        try:
            if self._alone:
                self._alone -= 1
                return False
            self._wake(helpers)
            helped = task.lead(self._place, self._lead, helpers)
            self._last_alone = self._last_alone // 2 if helped else min(2 * self._last_alone + 1, MOST_ALONE)
            self._alone = 0 if helped else self._last_alone
            return True
        finally:
            self._one_call.release()

    def _wake(self, helpers: int) -> None:
        """Start those who sleep. They are daemons: a process may end while they wait for a call."""
        for number in range(helpers):
            if number not in self._helpers or not self._helpers[number].is_alive():
                helper = threading.Thread(target=self._help, args=(number,), name="mambabyte-helper", daemon=True)
                with contextlib.suppress(RuntimeError):  # the process ends, or may have no more threads: fewer help
                    helper.start()
                    self._helpers[number] = helper

    def _help(self, number: int) -> None:
        self._serve.alone(self._place, self._place + WORD_BYTES * (HELPERS + LINE * number))


@functools.cache
def _crew() -> _Crew:
    crew = _Crew()
    if hasattr(os, "register_at_fork"):  # a child has none of the helpers, and perhaps the lock of a call
        os.register_at_fork(after_in_child=crew.begin_anew)
    return crew


def _lead() -> Function:
    """Count in the helpers that wait, work with them, and wait for the last one."""
    f = Function("mambabyte_lead", host_target(), arrays(INDEX, "desk", "team"), ["entry", "arguments", "helpers"])
    desk, team = f.pointer("desk"), f.pointer("team")

    def for_each_helper(carry: list, body: Callable[[Pointer, list], list]) -> list:
        return f.loop(0, f.index("helpers"), carry, lambda i, carry: body(desk + HELPERS + i * LINE, carry))

    def count_in(own: Pointer, carry: list) -> list:
        wait_while(f, lambda: read(f, own).compare("==", ASLEEP), looks=WAKING)
        return [carry[0] + f.select(swap(f, own, WAITING, CALLED), f.number(1), f.number(0))]

    def begin(own: Pointer, _: list) -> list:
        swap(f, own, CALLED, WORKING)
        return []

    def wait_for(own: Pointer, _: list) -> list:
        wait_while(f, lambda: read(f, own).compare("==", WORKING))
        return []

    write(f, desk + ENTRY, f.index("entry"))
    write(f, desk + ARGUMENTS, f.index("arguments"))
    (size,) = for_each_helper([f.number(1)], count_in)
    write(f, team + SIZE, size)
    for word in (ARRIVALS, NUMBERS, STALLS):
        write(f, team + word, 0)
    for_each_helper([], begin)
    _enter(f)
    for_each_helper([], wait_for)
    f.b.ret_void()
    return f


def _serve() -> Function:
    """Look for calls and work with their leaders until none has come for a while."""
    f = Function("mambabyte_serve", host_target(), arrays(INDEX, "desk", "own"), [])
    own = f.pointer("own")

    def work() -> None:
        _enter(f)
        write(f, own, WAITING)

    def look(carry: list) -> list:
        called = read(f, own).compare("==", WORKING)
        f.when(called, work)
        rest(f, carry[0])
        return [f.select(called, f.number(0), carry[0] + 1)]

    def serve(_: list) -> list:
        f.repeat_while([f.number(0)], lambda carry: carry[0].compare("<", PATIENCE), look)
        return [f.select(swap(f, own, WAITING, ASLEEP), f.number(0), f.number(1))]

    on_duty = f.select(swap(f, own, ASLEEP, WAITING), f.number(1), f.number(0))
    f.repeat_while([on_duty], lambda carry: carry[0].compare("==", 1), serve)
    f.b.ret_void()
    return f


def _enter(f: Function) -> None:
    """Call what lies on the desk."""
    desk = f.pointer("desk")
    function = f.b.load((desk + ENTRY).value, typ=ir.PointerType(ir.FunctionType(ir.VoidType(), [PTR])))
    f.b.call(function, [f.b.load((desk + ARGUMENTS).value, typ=PTR)])
