"""The format of a prepared set: shards of documents end to end, and a manifest that is written last.

    manifest.json           what the set holds, where it came from, sizes and sha256 of everything below
    shard-00000.bin         whole documents end to end, about 256 MiB of them
    shard-00000.idx         int64, little-endian: where each document begins, and the end
    shard-00000.crc         uint32, little-endian: CRC-32 of every 16 KiB of the .bin
    shard-00000.names       one line per document: what it was called, empty for a record

A folder with preparing.json and no manifest.json is a set that is not finished. The block checksums let a reader check
every byte it uses at the price of 16 KiB, where a sha256 would ask for the whole shard.
"""

import contextlib
import hashlib
import json
import os
import re
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mambabyte.config import from_dict, load_json, to_dict

BLOCK = 1 << 14
MANIFEST = "manifest.json"
PROGRESS = "preparing.json"
SUFFIXES = ("bin", "idx", "crc", "names")
_FORMAT = {"format": "mambabyte-set", "version": 1}
_SAYS_SET = re.compile(rb'"format"\s*:\s*"mambabyte-set"')
_HEAD = 1 << 16  # of a manifest, which begins with its format
_SHARD_FILE = re.compile(rf"shard-\d{{5,}}\.({'|'.join(SUFFIXES)})")
_MOST_DOCUMENTS = 1 << 22  # per shard, so that its offsets stay within 32 MiB of memory
_LARGEST_JSON = 1 << 28
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Description:
    """Where a set comes from. Preparing again from the same goes on where it stopped; anything else is another set."""

    sources: tuple[str, ...]
    inputs: int
    input_bytes: int
    listing: str
    split: str
    subset: str | None
    raw: bool
    shard_bytes: int


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Hex sha256 of each file of a shard."""

    bin: str
    idx: str
    crc: str
    names: str

    def __getitem__(self, suffix: str) -> str:
        return str(getattr(self, suffix))


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard: how much it holds, and the digests of its files."""

    bytes: int
    documents: int
    name_bytes: int
    sha256: Digests

    def sizes(self) -> dict[str, int]:
        """Size in bytes of each file, by its suffix."""
        blocks = -(-self.bytes // BLOCK)
        return {"bin": self.bytes, "idx": 8 * (self.documents + 1), "crc": 4 * blocks, "names": self.name_bytes}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished set: its totals, what was left out and why, and its shards."""

    bytes: int
    documents: int
    empty: int
    broken: int
    examples: tuple[str, ...]
    source: Description
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """An unfinished set: the shards that are done, and the input and document of it that come next."""

    source: Description
    shards: tuple[ShardEntry, ...] = ()
    next_input: int = 0
    next_document: int = 0
    empty: int = 0
    broken: int = 0
    examples: tuple[str, ...] = ()


def shard_file(folder: Path, number: int, suffix: str) -> Path:
    """Where a file of shard `number` lies."""
    return folder / f"shard-{number:05d}.{suffix}"


def is_set(folder: Path) -> bool:
    """Whether a folder holds a prepared set, be it damaged: its manifest says so or lies beside shards.

    Raises ValueError if the set is not finished or lost its manifest, so that its tables are never read as data.
    """
    manifest = folder / MANIFEST
    has_manifest = manifest.is_file()
    if has_manifest and _says_set(manifest):
        return True
    if (folder / PROGRESS).is_file():
        raise ValueError(f"{folder}: is a prepared set that is not finished; run the same `mambabyte prepare` again")
    if not _holds_shards(folder):
        return False
    if not has_manifest:
        raise ValueError(
            f"{folder}: holds shards of a prepared set but no {MANIFEST}; restore it or prepare the set again"
        )
    return True


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared set. Raises ValueError, naming the file, if it is damaged or of another kind."""
    manifest = _read(Manifest, folder / MANIFEST)
    totals = sum(shard.bytes for shard in manifest.shards), sum(shard.documents for shard in manifest.shards)
    if totals != (manifest.bytes, manifest.documents):
        raise ValueError(f"{folder / MANIFEST}: its totals and its shards disagree; restore it or overwrite the set")
    return manifest


def read_progress(folder: Path) -> Progress:
    """How far the preparation of a set has come. Raises ValueError if that cannot be read."""
    return _read(Progress, folder / PROGRESS)


def publish_json(path: Path, record: Manifest | Progress) -> None:
    """Write a record so that the file is either the old or the new one, whole, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(_FORMAT | to_dict(record), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardWriter:
    """Writes the files of one shard under temporary names, to be published whole."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number
        self._bin = _HashedFile(self._temporary("bin"))
        self._names = _HashedFile(self._temporary("names"))
        self._offsets = array("q", [0])
        self._checksums = array("I")
        self._block = bytearray()

    @property
    def nbytes(self) -> int:
        """Bytes of documents so far."""
        return self._bin.size

    def is_full(self, shard_bytes: int) -> bool:
        """Whether the shard should be published before the next document."""
        return self._bin.size >= shard_bytes or len(self._offsets) > _MOST_DOCUMENTS

    def add(self, name: str, chunks: Iterable[bytes]) -> int:
        """Append a document; returns its size. Without a byte it leaves no trace."""
        for chunk in chunks:
            self._bin.write(chunk)
            self._checksum(chunk)
        size = self._bin.size - self._offsets[-1]
        if size:
            self._offsets.append(self._bin.size)
            self._names.write(printable(name).encode() + b"\n")
        return size

    def publish(self) -> ShardEntry:
        """Make the shard durable under its own name."""
        if self._block:
            self._checksums.append(zlib.crc32(self._block))
        tables = {"idx": np.asarray(self._offsets, "<i8"), "crc": np.asarray(self._checksums, "<u4")}
        files = {"bin": self._bin, "names": self._names}
        for suffix, table in tables.items():
            files[suffix] = _HashedFile(self._temporary(suffix))
            files[suffix].write(table.tobytes())
        for file in files.values():
            file.finish()
        for suffix in files:
            self._temporary(suffix).replace(shard_file(self._folder, self._number, suffix))
        sync_folder(self._folder)
        return ShardEntry(
            bytes=self._bin.size,
            documents=len(self._offsets) - 1,
            name_bytes=self._names.size,
            sha256=Digests(**{suffix: file.digest.hexdigest() for suffix, file in files.items()}),
        )

    def abandon(self) -> None:
        """Drop what has been written."""
        for file in (self._bin.file, self._names.file):
            with contextlib.suppress(OSError):  # what is left in the buffer of a full disk
                file.close()
        for suffix in SUFFIXES:
            self._temporary(suffix).unlink(missing_ok=True)

    def _checksum(self, chunk: bytes) -> None:
        missing = BLOCK - len(self._block)
        if len(chunk) < missing:
            self._block += chunk
            return
        view = memoryview(chunk)
        self._checksums.append(zlib.crc32(view[:missing], zlib.crc32(self._block)))
        whole = missing + (len(chunk) - missing) // BLOCK * BLOCK
        self._checksums.extend(zlib.crc32(view[start : start + BLOCK]) for start in range(missing, whole, BLOCK))
        self._block = bytearray(view[whole:])

    def _temporary(self, suffix: str) -> Path:
        path = shard_file(self._folder, self._number, suffix)
        return path.with_name(path.name + ".tmp")


def printable(name: str) -> str:
    """A name on one line that UTF-8 can write, with what it cannot, and control characters, as escapes."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class _HashedFile:
    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def finish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def _says_set(manifest: Path) -> bool:
    """By its beginning, so that a manifest that is cut short counts too."""
    with manifest.open("rb") as file:
        return _SAYS_SET.search(file.read(_HEAD)) is not None


def _holds_shards(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        with os.scandir(folder) as entries:
            return any(_SHARD_FILE.fullmatch(entry.name) for entry in entries)
    except PermissionError:
        return False  # whoever goes on to read the folder says that it cannot be listed


def _read(kind: type[T], path: Path) -> T:
    data: dict[str, Any] = load_json(path, _LARGEST_JSON)
    found = {key: data.pop(key, None) for key in _FORMAT}
    if found != _FORMAT:
        raise ValueError(f"{path}: is not of a prepared set that this version reads: {found} instead of {_FORMAT}")
    return from_dict(kind, data, str(path))
