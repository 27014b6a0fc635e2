import fcntl
import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mambabyte.checkpoints import run as runs
from mambabyte.checkpoints.lock import LOCK, locked
from mambabyte.checkpoints.publish import MANIFEST, damage, publish, write_text
from mambabyte.checkpoints.weights import save_tensors

FILES = {"a.bin": b"weights" * 300, "b.json": b'{"x": 1}\n', "empty": b""}


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the checkpoints 1, 2 and 30."""
    for step in (1, 2, 30):
        runs.save(tmp_path, step, fill, keep=3)
    return tmp_path


def test_newest_is_by_number_and_holds_what_was_written(run: Path) -> None:
    newest = runs.newest(run)
    assert newest.name == "step-30"
    assert {path.name: path.read_bytes() for path in newest.iterdir() if path.name != MANIFEST} == FILES
    assert list(runs.steps(run)) == [1, 2, 30]


def test_saving_keeps_the_last_ones(run: Path) -> None:
    runs.save(run, 31, fill, keep=2)
    assert sorted(path.name for path in run.iterdir()) == ["step-30", "step-31"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("harm", [flip, cut, lengthen, Path.unlink])
def test_any_damage_is_found_and_the_one_before_used(
    run: Path, caplog: pytest.LogCaptureFixture, name: str, harm: Callable[[Path], None]
) -> None:
    victim = run / "step-30" / name
    if victim.stat().st_size == 0 and harm in (flip, cut):
        harm = lengthen
    harm(victim)
    with caplog.at_level(logging.WARNING, logger="mambabyte"):
        newest = runs.newest(run)
    if name == MANIFEST and harm is cut:  # it ends in a newline, which says nothing
        assert newest.name == "step-30"
        return
    assert newest.name == "step-2"
    assert str(run / "step-30" if name == MANIFEST else victim) in caplog.text
    assert str(run / "step-2") in caplog.text


def test_no_whole_checkpoint_is_a_sentence_for_each(run: Path) -> None:
    for step in (1, 2, 30):
        flip(run / f"step-{step}" / "a.bin")
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*step-30.*step-2.*step-1"):
        runs.newest(run)
    with pytest.raises(ValueError, match="neither a model"):
        runs.newest(run / "step-1")


def test_tidying_sets_damaged_ones_aside_so_that_new_ones_count(run: Path) -> None:
    flip(run / "step-30" / "a.bin")
    (run / "step-31.tmp").mkdir()
    runs.tidy(run, runs.newest(run))
    assert sorted(path.name for path in run.iterdir()) == ["damaged-step-30", "step-1", "step-2"]
    runs.save(run, 3, fill, keep=2)
    assert runs.newest(run).name == "step-3"


def test_saving_a_step_again_replaces_it(run: Path) -> None:
    runs.save(run, 30, lambda folder: write_text(folder / "new", "text"), keep=3)
    assert sorted(path.name for path in (run / "step-30").iterdir()) == [MANIFEST, "new"]
    assert damage(run / "step-30") is None


class BrokenError(Exception):
    pass


def test_an_error_while_writing_leaves_the_older_checkpoints_and_nothing_else(run: Path) -> None:
    def write(folder: Path) -> None:
        fill(folder)
        raise BrokenError

    with pytest.raises(BrokenError):
        runs.save(run, 31, write, keep=1)
    assert list(runs.steps(run)) == [1, 2, 30]
    assert len(list(run.iterdir())) == 3


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes of a file fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensors_that_do_not_fit_are_an_os_error(run: Path) -> None:
    tensors = {"x": torch.zeros(100_000)}
    with files_at_most(50_000), pytest.raises(OSError, match=r"x\.safetensors"):
        runs.save(run, 31, lambda folder: save_tensors(folder / "x.safetensors", tensors), keep=1)
    assert sorted(path.name for path in run.iterdir()) == ["step-1", "step-2", "step-30"]


CRASHES = """
import os, sys
from pathlib import Path
from mambabyte.checkpoints import run as runs

def fill(folder):
    (folder / "a.bin").write_bytes(b"x" * 5000)

def die_at(count):
    seen = 0
    def hook(event, _):
        nonlocal seen
        seen += event.split(".")[0] in ("os", "open", "shutil")
        if seen > count:
            os._exit(9)  # no handler, no clean-up, no flush, as for SIGKILL
    sys.addaudithook(hook)

run, crashes = Path(sys.argv[1]), 0
runs.save(run, 1, fill, keep=2)
runs.save(run, 2, fill, keep=2)
while True:
    child = os.fork()
    if child == 0:
        die_at(crashes)
        runs.save(run, 3, fill, keep=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    newest = runs.newest(run)
    assert newest.name in ("step-2", "step-3"), newest
    if status == 0:
        break
    assert os.WEXITSTATUS(status) == 9
    crashes += 1
    runs.tidy(run, newest)
    assert not list(run.glob("*.tmp"))
    if newest.name == "step-3":
        runs.discard(newest)
        runs.save(run, 1, fill, keep=3)
        runs.save(run, 2, fill, keep=2)
assert newest.name == "step-3" and list(runs.steps(run)) == [2, 3]
print(crashes)
"""


def test_killed_at_any_file_operation_there_is_a_whole_checkpoint(tmp_path: Path) -> None:
    """One process per operation of a save: it is killed right before that operation."""
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def test_a_folder_half_removed_never_bears_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "step-1", fill)

    def interrupted(path: Path) -> None:
        (path / "a.bin").unlink()
        raise BrokenError

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(BrokenError):
        runs.discard(tmp_path / "step-1")
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.old.tmp"]


def test_second_process_is_refused_by_name_and_a_dead_one_is_not(tmp_path: Path) -> None:
    holder = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    os.write(holder, b"4242\n")
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="process 4242 is training in this folder"), locked(tmp_path):
        pytest.fail("two held the lock")
    os.close(holder)  # what the kernel does for a process that dies
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    with locked(tmp_path):
        pass


def test_setting_aside_takes_checkpoints_and_named_files(run: Path) -> None:
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "mine.txt").write_text("stays")
    assert runs.set_aside(run, ("metrics.jsonl", "absent")) == run / "before-1"
    assert sorted(path.name for path in run.iterdir()) == ["before-1", "mine.txt"]
    assert runs.newest(run / "before-1").name == "step-30"
    assert runs.set_aside(run, ("metrics.jsonl",)) is None
