"""A prepared set as parts of a corpus: memory-mapped, and checked before any byte is used."""

import functools
import hashlib
import itertools
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mambabyte.config import to_dict
from mambabyte.data.discovery import File
from mambabyte.data.files import FileReader
from mambabyte.data.shards import BLOCK, Manifest, ShardEntry, read_manifest, shard_file

VERIFIED_WHOLE = 1 << 31  # bytes; about a second of sha256
_OPEN_TABLES = 32
_PIECE = 1 << 20
assert _PIECE % BLOCK == 0


def open_set(folder: Path, reader: FileReader, label: str) -> tuple[list["Shard"], Manifest]:
    """The shards of a prepared set, in order; `label` is what to call the set in the names of records.

    Every file is compared with the size in the manifest and, in sets of up to 2 GiB, with its sha256. Larger sets are
    checked as they are read: a shard's tables when it is first used, its bytes by block checksums on every read.
    Raises ValueError naming the file that is damaged, changed or missing.
    """
    manifest = read_manifest(folder)
    for number, entry in enumerate(manifest.shards):
        for suffix, size in entry.sizes().items():
            _check_size(shard_file(folder, number, suffix), size)
            if manifest.bytes <= VERIFIED_WHOLE:
                _check_sha256(shard_file(folder, number, suffix), entry.sha256[suffix])
    tables = functools.lru_cache(_OPEN_TABLES)(_Tables)
    firsts = itertools.accumulate((entry.documents for entry in manifest.shards), initial=0)
    shards = [
        Shard(shard_file(folder, number, ""), entry, reader, tables, f"{label}#", first)
        for number, (entry, first) in enumerate(zip(manifest.shards, firsts, strict=False))
    ]
    return shards, manifest


def describe(folder: Path) -> dict[str, Any]:
    """What a prepared set holds and where it came from, as JSON values, once it has been checked as `open_set` does."""
    _, manifest = open_set(folder, FileReader(), folder.name)
    described = to_dict(manifest)
    return {**described, "shards": len(manifest.shards), "verified": manifest.bytes <= VERIFIED_WHOLE}


class Shard:
    """A `Part` of a corpus: the documents of one shard."""

    def __init__(
        self,
        stem: Path,
        entry: ShardEntry,
        reader: FileReader,
        tables: Callable[[Path, ShardEntry], "_Tables"],
        label: str,
        first: int,
    ) -> None:
        self._file = File(f"{stem}bin", entry.bytes, 0)
        self._stem, self._entry, self._label, self._first = stem, entry, label, first
        self._reader, self._open_tables = reader, tables
        self.nbytes, self.documents = entry.bytes, entry.documents

    @property
    def offsets(self) -> np.ndarray:
        """Where each document begins, and the end, memory-mapped."""
        return self._tables().offsets

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out` from position `start` on with bytes whose block checksums have been compared."""
        done = 0
        while done < len(out):
            position = start + done
            lower = position - position % BLOCK
            upper = min(lower + _PIECE, start + len(out) + -(start + len(out)) % BLOCK, self.nbytes)
            blocks = self._checked_blocks(lower, upper)
            count = min(len(out) - done, upper - position)
            out[done : done + count] = blocks[position - lower : position - lower + count]
            done += count

    def document(self, index: int) -> np.ndarray:
        """One document as a memory map, after its blocks have been compared with their checksums."""
        start, stop = (int(offset) for offset in self.offsets[index : index + 2])
        for lower in range(start - start % BLOCK, stop, _PIECE):
            self._checked_blocks(lower, min(lower + _PIECE, stop + -stop % BLOCK, self.nbytes))
        return np.memmap(self._file.path, np.uint8, mode="r", offset=start, shape=(stop - start,))

    def name(self, index: int) -> str:
        """What the document was called when it was prepared, or the set and a number."""
        names = _read_names(Path(f"{self._stem}names"), self._entry.sha256.names)
        return names[index] or f"{self._label}{self._first + index}"

    def fingerprint(self) -> str:
        """Hex digest of the bytes and of where documents begin."""
        return self._entry.sha256["bin"] + self._entry.sha256["idx"]

    def _checked_blocks(self, lower: int, upper: int) -> np.ndarray:
        blocks = np.empty(upper - lower, np.uint8)
        self._reader.read_into(blocks, self._file, lower)
        expected = self._tables().checksums[lower // BLOCK :]
        for i in range(0, len(blocks), BLOCK):
            if zlib.crc32(blocks[i : i + BLOCK].data) != expected[i // BLOCK]:
                raise ValueError(_damaged(self._file.path, f"near byte {lower + i}"))
        return blocks

    def _tables(self) -> "_Tables":
        return self._open_tables(self._stem, self._entry)


class _Tables:
    """Offsets and block checksums of a shard, which are compared with the manifest when they are opened."""

    def __init__(self, stem: Path, entry: ShardEntry) -> None:
        for suffix in ("idx", "crc"):
            _check_sha256(Path(f"{stem}{suffix}"), entry.sha256[suffix])
        self.offsets: np.ndarray = np.memmap(f"{stem}idx", "<i8", mode="r")
        self.checksums: np.ndarray = np.memmap(f"{stem}crc", "<u4", mode="r")


@functools.lru_cache(2)
def _read_names(path: Path, sha256: str) -> list[str]:
    """One name per document of a shard, "" for a record."""
    _check_sha256(path, sha256)
    return path.read_text(encoding="utf-8", errors="backslashreplace").split("\n")


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing from its prepared set; restore it or overwrite the set") from None
    if found != size:
        raise ValueError(_damaged(os.fspath(path), f"it has {found} bytes instead of {size}"))


def _check_sha256(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(_damaged(os.fspath(path), "its sha256 differs"))


def _damaged(path: str, how: str) -> str:
    return f"{path}: is not what was prepared ({how}); restore it or overwrite the set"
