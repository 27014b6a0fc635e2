"""Files as they lie on disk, each one document."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mambabyte.data.discovery import File
from mambabyte.data.files import FileReader, check_unchanged

_SAMPLES = 256
_SAMPLE_BYTES = 64


class RawFiles:
    """A `Part` of a corpus whose documents are whole, non-empty files."""

    def __init__(self, files: Sequence[File], reader: FileReader) -> None:
        assert all(file.size > 0 for file in files)
        self._files = files
        self._reader = reader
        self.offsets = np.zeros(len(files) + 1, np.int64)
        np.cumsum([file.size for file in files], out=self.offsets[1:])
        self.nbytes = int(self.offsets[-1])
        self.documents = len(files)

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out` from position `start` on, file after file."""
        index = int(np.searchsorted(self.offsets, start, side="right")) - 1
        offset, done = start - int(self.offsets[index]), 0
        while done < len(out):
            file = self._files[index]
            count = min(len(out) - done, file.size - offset)
            self._reader.read_into(out[done : done + count], file, offset)
            index, offset, done = index + 1, 0, done + count

    def document(self, index: int) -> np.ndarray:
        """A whole file as a read-only memory map."""
        file = self._files[index]
        try:
            check_unchanged(file, Path(file.path).stat())
            return np.memmap(file.path, np.uint8, mode="r", shape=(file.size,))
        except OSError as error:
            raise ValueError(f"{file.path}: cannot be opened: {error.strerror}") from error

    def name(self, index: int) -> str:
        """The path, with bytes that are not UTF-8 written as escapes."""
        return os.fsencode(self._files[index].path).decode("utf-8", "backslashreplace")

    def fingerprint(self) -> str:
        """Hex digest of every file's size and of bytes sampled evenly, for reading everything could take hours."""
        digest = hashlib.sha256(self.offsets.data)
        sample = np.empty(min(_SAMPLE_BYTES, self.nbytes), np.uint8)
        for i in range(_SAMPLES):
            self.read_into(sample, (self.nbytes - len(sample)) * i // (_SAMPLES - 1))
            digest.update(sample.data)
        return digest.hexdigest()
