"""Documents laid end to end: one long array of bytes, and where each document begins in it."""

import bisect
import functools
import hashlib
import itertools
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from mambabyte.data.discovery import File
from mambabyte.data.files import FileReader
from mambabyte.data.prepare import identify, write_set
from mambabyte.data.prepared import open_set
from mambabyte.data.raw_files import RawFiles
from mambabyte.data.records import counted
from mambabyte.data.shards import is_set
from mambabyte.data.sources import Input, Source, find_inputs, is_encoded, parse_source

_logger = logging.getLogger("mambabyte.data")


class Part(Protocol):
    """Some documents in a row, stored somewhere. All positions are relative to the part."""

    nbytes: int
    documents: int

    @property
    def offsets(self) -> np.ndarray:
        """Where each document begins, and the end: int64, (documents + 1,), from 0, strictly increasing."""

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out` (uint8) with the bytes from `start` on, across documents."""

    def document(self, index: int) -> np.ndarray:
        """One document as a read-only memory map."""

    def name(self, index: int) -> str:
        """What to call a document, printable whatever bytes its file name has."""

    def fingerprint(self) -> str:
        """What changes when the bytes or the documents do."""


@dataclass(frozen=True)
class Share:
    """A range of a corpus that windows are drawn from in proportion to `weight`. An unweighted corpus is one share."""

    name: str
    start: int
    stop: int
    weight: Fraction


class Corpus:
    """Bytes `0 .. nbytes - 1` of all documents end to end, read where they lie and when they are asked for."""

    def __init__(self, parts: Sequence[Part], shares: Sequence[Share], *, empty: int = 0) -> None:
        self._parts = tuple(parts)
        self._byte_starts = [0, *itertools.accumulate(part.nbytes for part in parts)]
        self._document_starts = [0, *itertools.accumulate(part.documents for part in parts)]
        self.shares = tuple(shares)
        self.empty = empty  # documents without a byte, which were left out
        self.nbytes = self._byte_starts[-1]
        self.documents = self._document_starts[-1]

    @classmethod
    def open(cls, paths: Sequence[str | Path]) -> "Corpus":
        """The documents of every path: files, folders, globs, prepared sets, or any other source (see `sources`).

        A plain file is a document as it lies. Sources that must be decoded first (compressed files, archives, columns
        of records, pipes, datasets) are prepared to a temporary folder, and a log line says so. Weights
        (`books:3 code:1`) make each path a share of a mixture. Raises ValueError, naming the path, if nothing is there,
        it cannot be read, it is damaged, or all that is there is empty.
        """
        if isinstance(paths, (str, Path)):
            paths = [paths]
        if not paths:
            raise ValueError("no data: name at least one file, folder or glob")
        sources = [parse_source(os.fspath(path)) for path in paths]
        reader = FileReader()
        opened = [_open_source(source, reader) for source in sources]
        sizes = [sum(part.nbytes for part in parts) for parts, _ in opened]
        empty = sum(count for _, count in opened)
        weighted = any(source.weight for source in sources)
        for source, size in zip(sources, sizes, strict=True):
            if size == 0 and (weighted or not any(sizes)):
                raise ValueError(
                    f"{source.path}: no bytes here, only empty documents ({empty}); name data that has some"
                )
        stops = list(itertools.accumulate(sizes))
        shares = [Share("all", 0, stops[-1], Fraction(1))]
        if weighted:
            shares = [
                Share(source.path, stop - size, stop, source.weight or Fraction(1))
                for source, size, stop in zip(sources, sizes, stops, strict=True)
            ]
        return cls([part for parts, _ in opened for part in parts], shares, empty=empty)

    @property
    def names(self) -> Sequence[str]:
        """The name of each document."""
        return _Names(self)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Where each document begins, and the end: int64, (documents + 1,). Several parts are joined in memory."""
        if len(self._parts) == 1:
            return self._parts[0].offsets
        starts = [part.offsets[:-1] + start for part, start in zip(self._parts, self._byte_starts, strict=False)]
        return np.concatenate([*starts, [self.nbytes]])

    def read(self, start: int, stop: int) -> np.ndarray:
        """The bytes in [start, stop), across documents, as a new uint8 array."""
        out = np.empty(stop - start, np.uint8)
        self.read_into(out, start)
        return out

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out` (uint8) with the bytes from `start` on. Raises ValueError if a file has changed, naming it."""
        for part, origin, lower, upper in self._overlaps(start, start + len(out)):
            part.read_into(out[lower - start : upper - start], lower - origin)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Positions in [start, stop) where a document begins, int64."""
        found = [np.empty(0, np.int64)]
        for part, origin, lower, upper in self._overlaps(start, stop):
            first, last = np.searchsorted(part.offsets, (lower - origin, upper - origin))
            found.append(part.offsets[first:last] + origin)
        return np.concatenate(found)

    def document(self, index: int) -> np.ndarray:
        """Document `index` as a read-only memory-mapped uint8 array."""
        part, local = self._locate(index)
        return part.document(local)

    def name(self, index: int) -> str:
        """What to call document `index`."""
        part, local = self._locate(index)
        return part.name(local)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of document sizes, weights and bytes (of raw files a sample): what a resumed run must find again.

        Paths and times are left out, so data may be moved or copied; the whole is not read, so a large corpus is quick.
        """
        shares = [(share.start, share.stop, str(share.weight)) for share in self.shares]
        parts = [part.fingerprint() for part in self._parts]
        return hashlib.sha256(repr((shares, parts)).encode()).hexdigest()

    def _locate(self, index: int) -> tuple[Part, int]:
        if not -self.documents <= index < self.documents:
            raise IndexError(f"document {index} of a corpus of {self.documents}")
        index %= self.documents
        number = bisect.bisect_right(self._document_starts, index) - 1
        return self._parts[number], index - self._document_starts[number]

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[Part, int, int, int]]:
        """Each part that meets [start, stop): the part, where it begins, and the common range, in corpus positions."""
        assert 0 <= start <= stop <= self.nbytes, "positions lie within the corpus"
        number = bisect.bisect_right(self._byte_starts, start) - 1
        while start < stop:
            end = min(stop, self._byte_starts[number + 1])
            yield self._parts[number], self._byte_starts[number], start, end
            number, start = number + 1, end


def _open_source(source: Source, reader: FileReader) -> tuple[list[Part], int]:
    """The parts that hold the documents of a source, in order, and how many of its documents were empty."""
    folder = Path(source.path)
    if is_set(folder):
        shards, manifest = open_set(folder, reader, folder.name)
        return [*shards], manifest.empty
    parts: list[Part] = []
    empty = 0
    for encoded, items in itertools.groupby(find_inputs(source), key=is_encoded):
        if encoded:
            decoded, count = _decode(source, list(items), reader)
            parts += decoded
            empty += count
        else:
            files = [File(item.name, item.size, item.modified) for item in items]
            held = [file for file in files if file.size > 0]
            parts += [RawFiles(held, reader)] if held else []
            empty += len(files) - len(held)
    return parts, empty


def _decode(source: Source, items: Sequence[Input], reader: FileReader) -> tuple[Sequence[Part], int]:
    """Prepare the inputs to a temporary folder, which goes when the last part that reads from it does."""
    if source.path == "-" or Path(source.path).is_fifo():
        _logger.warning("reading %s until it ends", "standard input" if source.path == "-" else source.path)
    else:
        _logger.warning(
            "%s must be decoded first; `mambabyte prepare` does that once instead of every time", source.path
        )
    folder = Path(tempfile.mkdtemp(prefix="mambabyte-"))
    weakref.finalize(reader, shutil.rmtree, folder, ignore_errors=True)
    manifest = write_set(items, folder, identify([source.path], items))
    if manifest.broken:
        broken = counted(manifest.broken, "broken record")
        _logger.warning("%s: %s left out, first %s", source.path, broken, manifest.examples[0])
    shards = open_set(folder, reader, source.path)[0] if manifest.shards else []
    return shards, manifest.empty


class _Names(Sequence[str]):
    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __len__(self) -> int:
        return self._corpus.documents

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._corpus.name(i) for i in range(*index.indices(len(self)))]
        return self._corpus.name(index)
