"""Reading at any position of many files through few open ones."""

import functools
import os

import numpy as np

from mambabyte.data.discovery import File

OPEN_FILES = 64  # of the 256 (macOS) to 1024 (Linux) that a process may hold by default


class FileReader:
    """Positioned reads from any number of files, of which the `OPEN_FILES` used last stay open.

    Every read first compares the file with what was found when it was listed: data that change are an error that names
    the file, never silently different training data. Reads are `pread` calls and not memory-mapped: a mapped file that
    shrinks ends the process with SIGBUS, and both read the same page cache. Threads may share a reader.
    """

    def __init__(self) -> None:
        self._open = functools.lru_cache(OPEN_FILES)(_OpenFile)

    def read_into(self, out: np.ndarray, file: File, offset: int) -> None:
        """Fill `out` (uint8) with the bytes of `file` from `offset` on. Raises ValueError if the file has changed."""
        self._open(file).read_into(out, offset)


class _OpenFile:
    """A descriptor that is closed when the last reader, the cache or a thread in mid-read, lets go of it."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.descriptor = -1
        try:
            self.descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ValueError(f"{file.path}: has vanished; it held {file.size} bytes when it was first seen") from None
        except OSError as error:
            raise ValueError(f"{file.path}: cannot be opened: {error.strerror}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read_into(self, out: np.ndarray, offset: int) -> None:
        check_unchanged(self.file, os.fstat(self.descriptor))
        left = out.data.cast("B")
        while left:
            count = os.preadv(self.descriptor, [left], offset)
            if count == 0:
                raise ValueError(
                    f"{self.file.path}: ends at byte {offset} and held {self.file.size} when it was first seen"
                )
            left, offset = left[count:], offset + count


def check_unchanged(file: File, status: os.stat_result) -> None:
    """Raise ValueError, naming the file, unless it still has the size it was found with and still has a name."""
    if status.st_size != file.size:
        raise ValueError(f"{file.path}: held {file.size} bytes when it was first seen and holds {status.st_size} now")
    if status.st_nlink == 0:
        raise ValueError(f"{file.path}: has been deleted or replaced since it was first seen")
