"""Teams: every thread of a call does its part, whoever is awake, from many callers at once, after forks and at exit."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mambabyte.ops import crew, team
from mambabyte.ops.crew import Task, TeamKernel
from mambabyte.ops.target import host_target
from mambabyte.ops.team import SIZE, as_team, barrier
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_values import FLOAT, INDEX, Int

ROUNDS, PLACES = 20, 12


def smoother() -> Function:
    """A kernel that adds to every place its neighbour before, ROUNDS times: no thread may run ahead of another."""
    f = Function("smooth", host_target(), {"x": FLOAT, "y": FLOAT, "team": INDEX}, ["places"])
    lanes = f.target.lanes

    def body(thread: Int, threads: Int) -> None:
        places = f.index("places")

        def one(i: Int, _: list) -> list:
            before = (i + places - 1) % places
            (f.pointer("y") + i * lanes).store(
                (f.pointer("x") + i * lanes).load() + (f.pointer("x") + before * lanes).load()
            )
            return []

        def back(i: Int, _: list) -> list:
            (f.pointer("x") + i * lanes).store((f.pointer("y") + i * lanes).load())
            return []

        def both(_: Int, __: list) -> list:
            for work in (one, back):
                f.loop(thread * places // threads, (thread + 1) * places // threads, [], work)
                barrier(f, threads)
            return []

        f.loop(0, ROUNDS, [], both)

    as_team(f, body)
    return f


def smooths(kernel: TeamKernel, threads: int, times: int = 1) -> bool:
    """Whether calls give what torch computes; numbers stay integers, so sums are exact."""
    lanes = host_target().lanes
    x, y = torch.empty(PLACES, lanes), torch.empty(PLACES, lanes)
    task = Task(kernel, x=x, y=y, places=PLACES)
    start = torch.arange(PLACES * lanes).view(PLACES, lanes) % 5
    truth = start.clone()
    for _ in range(ROUNDS):
        truth = truth + truth.roll(1, 0)
    for _ in range(times):
        x.copy_(start)
        task.run(threads)
        if not torch.equal(x, truth.float()):
            return False
    return True


@pytest.mark.parametrize("threads", [1, 2, 3, 100])
def test_every_thread_does_its_part(threads: int) -> None:
    assert smooths(TeamKernel(smoother()), threads, times=200)


def test_a_helper_takes_part() -> None:
    """It need not in any one call, if the machine gives it no time; it does in one of many."""
    x = torch.zeros(PLACES, host_target().lanes)
    task = Task(TeamKernel(smoother()), x=x, y=x.clone(), places=PLACES)

    def size() -> int:
        task.run(threads=min(2, crew.CORES))
        return int(task.team[SIZE])

    assert any(size() == min(2, crew.CORES) for _ in range(50_000))


def test_after_a_helper_that_kept_the_leader_waiting_calls_are_made_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    if crew.CORES < 2:
        pytest.skip("this machine has one core: nobody helps")
    monkeypatch.setattr(team, "LOOKS", 50)
    f = Function("lag", host_target(), {"x": FLOAT, "team": INDEX}, [])

    def body(thread: Int, threads: Int) -> None:
        def look(carry: list) -> list:
            return [carry[0] + (team.read(f, f.pointer("team")) + 1)]  # atomic, so that the loop is not left out

        f.repeat_while([f.number(0)], lambda carry: carry[0].compare("<", thread * 1_000_000), look)
        barrier(f, threads)

    as_team(f, body)
    crew._crew.cache_clear()  # nothing is known of helpers
    task = Task(TeamKernel(f), x=torch.zeros(1))

    def size() -> int:
        task.run(threads=2)
        return int(task.team[SIZE])

    sizes = [size() for _ in range(600)]
    crew._crew.cache_clear()
    together = [i for i, n in enumerate(sizes) if n == 2]
    assert together, "no helper came in time in any of many calls"
    assert all(later > 2 * first for first, later in itertools.pairwise(together)), together


def test_callers_in_many_threads_take_turns() -> None:
    kernels = [TeamKernel(smoother()) for _ in range(2)]
    with ThreadPoolExecutor(6) as callers:
        assert all(callers.map(lambda i: smooths(kernels[i % 2], threads=1 + i % 3, times=100), range(12)))


def test_arguments_must_be_those_of_the_kernel() -> None:
    with pytest.raises(AssertionError, match="place"):
        Task(TeamKernel(smoother()), x=torch.zeros(1), y=torch.zeros(1), place=3)


def run(program: str, *, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, check=True, timeout=seconds, env=environment, capture_output=True, text=True)


FORK = """
import os, threading
from tests.ops.test_crew import smoother, smooths
from mambabyte.ops.crew import TeamKernel
from mambabyte.ops.native import compile_object
kernel = TeamKernel(smoother())
source = smoother()
stop = threading.Event()
def busy():
    while not stop.is_set():
        assert smooths(kernel, threads=2)
def compiling():
    while not stop.is_set():
        compile_object(str(source.module), source.target)
others = [threading.Thread(target=busy), threading.Thread(target=compiling)]
for other in others:
    other.start()
for _ in range(8):
    assert smooths(kernel, threads=2, times=10)
    child = os.fork()
    if child == 0:
        os._exit(0 if smooths(kernel, threads=2, times=10) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
stop.set()
for other in others:
    other.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_in_the_middle_of_calls_and_of_compiling_has_a_crew_of_its_own() -> None:
    run(FORK)


EXIT = """
import atexit, threading, time, torch
from mambabyte.ops.crew import Task, TeamKernel
from tests.ops.test_crew import PLACES, smoother, smooths
from mambabyte.ops.target import host_target
kernel = TeamKernel(smoother())
x = torch.zeros(PLACES, host_target().lanes)
task = Task(kernel, x=x, y=x.clone(), places=PLACES)
def daemon():
    while True:
        task.run(threads=2)
atexit.register(lambda: print("right at exit", smooths(kernel, threads=2, times=20)))
threading.Thread(target=daemon, daemon=True).start()
time.sleep(0.3)
"""


def test_a_process_ends_while_a_daemon_is_at_work_and_may_still_call() -> None:
    assert run(EXIT).stdout == "right at exit True\n"
