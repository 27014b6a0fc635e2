"""Compiling and calling kernels: the cache on disk, threads, forks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mambabyte.ops import native
from mambabyte.ops.native import Kernel, threads_for
from mambabyte.ops.target import host_target
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_values import FLOAT


def doubler(name: str = "double") -> Function:
    """A kernel that doubles a vector for each task."""
    f = Function(name, host_target(), {"x": FLOAT}, ["tasks"])

    def task(number) -> None:  # type: ignore[no-untyped-def]
        at = f.pointer("x") + number * f.target.lanes
        at.store(at.load() * 2.0)

    f.for_each_task(f.index("tasks"), task)
    return f


def doubles(kernel: Kernel, threads: int = 1) -> bool:
    tasks = 50
    x = torch.ones(tasks * host_target().lanes)
    kernel(threads=threads, x=x, tasks=tasks)
    return bool((x == 2.0).all())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mambabyte"


def test_every_task_is_done_once_whatever_the_threads() -> None:
    kernel = Kernel(doubler())
    assert all(doubles(kernel, threads) for threads in (1, 2, 5))


def test_second_compile_comes_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doubles(Kernel(doubler()))
    (entry,) = cache.iterdir()
    assert entry.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(native, "compile_object", None)  # calling it would fail
    assert doubles(Kernel(doubler()))


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "directory", "writable by others"])
def test_damaged_cache_entry_is_built_again(cache: Path, damage: str) -> None:
    Kernel(doubler())
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    if damage == "directory":
        entry.unlink()
        entry.mkdir()
    elif damage == "writable by others":
        entry.chmod(0o666)
    else:
        changed = bytes([good[-1] ^ 1])
        entry.write_bytes({"truncated": good[:100], "changed": good[:-1] + changed, "empty": b""}[damage])
    assert doubles(Kernel(doubler()))
    if damage != "directory":
        assert entry.read_bytes() == good
        assert entry.stat().st_mode & 0o022 == 0
    assert [path.name for path in cache.iterdir()] == [entry.name], "a temporary file was left behind"


def test_cache_that_cannot_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert doubles(Kernel(doubler()))
    assert file.read_text() == "not a folder"


def test_wrong_arguments_are_caught_before_the_call() -> None:
    kernel = Kernel(doubler())
    with pytest.raises(AssertionError, match="double"):
        kernel(threads=1, x=torch.ones(16), task=1)


def test_small_work_stays_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert threads_for(1e5, tasks=100) == 1
    assert threads_for(1e7, tasks=100) == 6
    assert threads_for(1e7, tasks=4) == 4
    assert threads_for(1e7, tasks=0) == 1


FORK = """
import os, torch
from tests.ops.test_native import doubler, doubles
from mambabyte.ops.native import Kernel
kernel = Kernel(doubler())
assert doubles(kernel, threads=2)
child = os.fork()
if child == 0:
    os._exit(0 if doubles(kernel, threads=2) else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert doubles(kernel, threads=2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_starts_its_own_threads() -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60, env=environment)
