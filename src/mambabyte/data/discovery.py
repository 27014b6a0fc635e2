"""From what a user names (a file, a folder, a glob) to a list of files in an order that no file system can change."""

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mambabyte.data.shards import is_set

_GLOB_CHARACTERS = frozenset("*?[")


class File(NamedTuple):
    """A regular file, its size in bytes and its time of change when it was found."""

    path: str
    size: int
    modified: int  # nanoseconds, to tell whether it has changed


def find_files(name: str) -> list[File]:
    """The regular files that `name` stands for: itself, all below a folder, or what a glob matches (`**` recurses).

    Below a folder, entries are visited in the byte order of their names; names that begin with a dot are left out;
    symbolic links are followed, each real folder once, so loops end. A link that leads nowhere is left out, too.
    Raises ValueError if nothing of that name exists or it is neither file nor folder, OSError if it cannot be read.
    """
    if os.path.lexists(name):
        return list(_expand([name]))
    if _GLOB_CHARACTERS.isdisjoint(name):
        raise ValueError(f"{name}: there is no such file or folder")
    # Path.glob refuses absolute patterns.
    matches = sorted(glob.glob(name, recursive=True), key=os.fsencode)  # noqa: PTH207
    if not matches:
        raise ValueError(f"{name}: no file matches this pattern")
    return list(_expand(matches))


def _expand(names: Sequence[str]) -> Iterator[File]:
    folders_seen: set[tuple[int, int]] = set()
    files_seen: set[str] = set()
    for name in names:
        status = _status(name)
        if stat.S_ISDIR(status.st_mode):
            found = _walk(name, status, folders_seen)
        elif stat.S_ISREG(status.st_mode):
            found = iter([File(name, status.st_size, status.st_mtime_ns)])
        else:
            raise ValueError(f"{name}: is neither a regular file nor a folder nor a pipe")
        for file in found:
            # A pattern such as `data/**` matches a folder and then the files inside it.
            if file.path not in files_seen:
                files_seen.add(file.path)
                yield file


def _status(name: str) -> os.stat_result:
    try:
        return Path(name).stat()
    except FileNotFoundError:
        raise ValueError(f"{name}: is a symbolic link to something that does not exist") from None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror}") from error


def _walk(folder: str, status: os.stat_result, seen: set[tuple[int, int]]) -> Iterator[File]:
    """Depth first with an explicit stack: a deep tree must not meet Python's recursion limit."""
    stack = [iter(_entries(folder, status, seen))]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        try:
            status = entry.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # a dangling link, or gone since the folder was listed
        except OSError as error:
            if entry.is_symlink():
                continue  # a link to itself (ELOOP) leads nowhere either
            raise ValueError(f"{entry.path}: cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode):
            stack.append(iter(_entries(entry.path, status, seen)))
        elif stat.S_ISREG(status.st_mode):
            yield File(entry.path, status.st_size, status.st_mtime_ns)


def _entries(folder: str, status: os.stat_result, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return []
    seen.add(identity)
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"{folder}: cannot be listed: {error.strerror}") from error
    if is_set(Path(folder)):
        raise ValueError(f"{folder}: is a prepared set; name it on its own and not among plain files")
    return sorted(visible, key=lambda entry: os.fsencode(entry.name))
