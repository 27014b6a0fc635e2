"""Everything that bytes can come from, as one stream of documents.

A source is written `PATH`, `PATH#COLUMN` or either with `:WEIGHT` at its end. PATH is a file, a folder, a glob, a
prepared set, `-` for standard input, or `hf://NAME` for a Hugging Face dataset. A name that exists is taken as it is,
whatever characters it has.
"""

import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from mambabyte.data.compression import chunks_of, damage_named, decompressor, is_tar, peek, tar_members
from mambabyte.data.discovery import find_files
from mambabyte.data.records import Tally, dataset_rows, json_lines, parquet_rows, refuse_array

STDIN = ("-", "/dev/stdin")
DATASET = "hf://"
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")
_MAYBE_ENCODED = re.compile(r"\.(gz|tgz|bz2|tbz2?|xz|txz|zstd?|tzst|tar)$", re.IGNORECASE)
_DEEPEST = 8  # archives within archives, or a file that unpacks to itself


@dataclass(frozen=True)
class Source:
    """What a user named: where the bytes are, which column of records holds them, and a weight in a mixture."""

    path: str
    column: str | None = None
    weight: Fraction | None = None


class Input(NamedTuple):
    """One thing to read from front to back: a file, a pipe, or a dataset (whose size is not known)."""

    kind: Literal["file", "stream", "dataset"]
    name: str
    column: str | None
    size: int
    modified: int


@dataclass(frozen=True)
class Reading:
    """How inputs are read: rows of which split and subset of a dataset; `raw` takes every file as it lies."""

    tally: Tally
    split: str = "train"
    subset: str | None = None
    raw: bool = False


class Document(NamedTuple):
    """A document: its name ("" for a record) and its bytes, to be read before the next document is asked for."""

    name: str
    chunks: Iterator[bytes]


def parse_source(text: str) -> Source:
    """`PATH[#COLUMN][:WEIGHT]`. Raises ValueError if the weight is not positive or not written as one."""
    if os.path.lexists(text):
        return Source(text)
    path, column, weight = text, None, None
    if match := re.fullmatch(r"(.+):(-?\d+(?:\.\d+)?)", path, re.DOTALL):
        path, weight = match[1], Fraction(match[2])
        if weight <= 0:
            raise ValueError(f"{text}: the weight of a source must be greater than zero")
    elif ":" in text and _is_number(text.rpartition(":")[2]):
        raise ValueError(f"{text}: a weight is written like 3 or 0.5, in plain digits")
    if not os.path.lexists(path) and (match := re.fullmatch(r"(.+)#([^#]+)", path, re.DOTALL)):
        path, column = match[1], match[2]
    return Source(path, column, weight)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def find_inputs(source: Source) -> list[Input]:
    """What to read for a source, in order. Raises ValueError if nothing is there or a dataset lacks a column."""
    if source.path.startswith(DATASET):
        if source.column is None:
            raise ValueError(f"{source.path}: name the column that holds the text: {source.path}#text")
        return [_dataset(source.path.removeprefix(DATASET), source.column)]
    if source.path in STDIN or _is_pipe(source.path):
        return [Input("stream", source.path, source.column, 0, 0)]
    files = find_files(source.path)
    return [Input("file", file.path, source.column, file.size, file.modified) for file in files]


def is_encoded(item: Input) -> bool:
    """Whether the documents of an input are other bytes than the file's own, by its name, first bytes and column."""
    if item.kind != "file" or item.column is not None:
        return True
    if not _MAYBE_ENCODED.search(item.name):
        return False
    with Path(item.name).open("rb") as file:
        head, _ = peek(file)
    return decompressor(item.name, head) is not None or is_tar(item.name, head)


def documents(item: Input, reading: Reading) -> Iterator[Document]:
    """Every document of an input, in an order that does not change. Raises ValueError, naming what is damaged."""
    if item.kind == "dataset":
        assert item.column is not None, "find_inputs asks for a column"
        return _rows(dataset_rows(item.name, item.column, reading.tally, split=reading.split, subset=reading.subset))
    if item.kind == "stream":
        return _stream_documents(item, reading)
    if item.column is not None and item.name.lower().endswith(_PARQUET) and not reading.raw:
        return _rows(parquet_rows(item.name, item.column, reading.tally))
    return _file_documents(item, reading)


def _stream_documents(item: Input, reading: Reading) -> Iterator[Document]:
    if item.name in STDIN:
        yield from _decode("stdin", None, sys.stdin.buffer, item.column, reading)
        return
    with Path(item.name).open("rb") as stream:
        yield from _decode(item.name, None, stream, item.column, reading)


def _file_documents(item: Input, reading: Reading) -> Iterator[Document]:
    with Path(item.name).open("rb") as file:
        found = os.fstat(file.fileno())
        if (found.st_size, found.st_mtime_ns) != (item.size, item.modified):
            raise ValueError(f"{item.name}: has changed since it was listed; start again when it no longer changes")
        yield from _decode(item.name, item.name, file, item.column, reading)


def _decode(
    name: str, inner: str | None, stream: BinaryIO, column: str | None, reading: Reading, depth: int = 0
) -> Iterator[Document]:
    """Documents of a stream that is called `name`; `inner` is what its kind is told from, None if it has no name."""
    if reading.raw:
        yield Document(name, chunks_of(stream))
        return
    with damage_named(name):
        head, stream = peek(stream)
        while (found := decompressor(inner, head)) is not None:
            depth = _deeper(name, depth)
            opener, inner = found
            head, stream = peek(opener(stream))
        if is_tar(inner, head):
            depth = _deeper(name, depth)
            for member, content in tar_members(stream):
                yield from _decode(f"{name}/{member}", member, content, column, reading, depth)
        elif column is None:
            yield Document(name, _guarded(name, stream))
        elif inner is None or inner.lower().endswith(_JSON_LINES):
            if inner is not None and inner.lower().endswith(".json"):
                refuse_array(name, head)
            yield from _rows(json_lines(name, stream, column, reading.tally))
        elif inner.lower().endswith(_PARQUET):
            raise ValueError(f"{name}: Parquet inside a compressed file or archive cannot be read; unpack it first")
        else:
            raise ValueError(f"{name}: is neither JSON lines nor Parquet, so it has no column {column!r}")


def _deeper(name: str, depth: int) -> int:
    if depth == _DEEPEST:
        raise ValueError(
            f"{name}: has more than {_DEEPEST} layers of compression and archives; unpack some of them first"
        )
    return depth + 1


def _guarded(name: str, stream: BinaryIO) -> Iterator[bytes]:
    with damage_named(name):
        yield from chunks_of(stream)


def _rows(contents: Iterator[bytes]) -> Iterator[Document]:
    for content in contents:
        yield Document("", iter([content]))


def _dataset(name: str, column: str) -> Input:
    """A local dataset has the size and the newest time of its files; one on the hub is pinned by `@revision` alone."""
    files = [path.stat() for path in Path(name).rglob("*") if path.is_file()] if Path(name).is_dir() else []
    newest = max((file.st_mtime_ns for file in files), default=0)
    return Input("dataset", name, column, sum(file.st_size for file in files), newest)


def _is_pipe(name: str) -> bool:
    try:
        mode = Path(name).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)
