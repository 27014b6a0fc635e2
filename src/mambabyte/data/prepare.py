"""Turning any sources into a prepared set, in bounded memory, so that it can be stopped at any moment and resumed."""

import fcntl
import fnmatch
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mambabyte.data.files import FileReader
from mambabyte.data.prepared import open_set
from mambabyte.data.records import Tally, counted, refuse_broken
from mambabyte.data.shards import (
    MANIFEST,
    PROGRESS,
    Description,
    Manifest,
    Progress,
    ShardWriter,
    is_set,
    printable,
    publish_json,
    read_manifest,
    read_progress,
    sync_folder,
)
from mambabyte.data.sources import Document, Input, Reading, documents, find_inputs, parse_source

SHARD_BYTES = 1 << 28
_LOCK = ".preparing.lock"
Report = Callable[[int, int], object]


def prepare(
    sources: Sequence[str],
    out: Path,
    *,
    column: str | None = None,
    split: str = "train",
    subset: str | None = None,
    raw: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    report: Report | None = None,
) -> Manifest:
    """Write every document of the sources to a prepared set in the folder `out`; see `sources` for how they are named.

    A run that was stopped goes on after the last shard that was done; a set that is done is left as it is. `report` is
    called with the bytes and documents so far. `strict` makes a broken record an error instead of a number, one that an
    earlier run left out too. Raises ValueError if a source is missing or damaged, if no byte is found, or if `out`
    holds anything else and `overwrite` does not say to replace it.
    """
    named = [parse_source(source) for source in sources]
    if any(source.weight is not None for source in named):
        raise ValueError(
            "weights belong to training (`--data books:3 code:1`); prepare each source to a set of its own"
        )
    named = [replace(source, column=source.column or column) for source in named]
    if raw and any(source.column for source in named):
        raise ValueError("raw takes files as they lie, so there is no column to read; leave out one of the two")
    for source in named:
        _check_apart(source.path, out)
    inputs = [item for source in named for item in find_inputs(source)]
    description = identify(sources, inputs, split=split, subset=subset, raw=raw, shard_bytes=shard_bytes)
    manifest = write_set(inputs, out, description, strict=strict, overwrite=overwrite, report=report)
    if not manifest.shards:
        left_out = f"{counted(manifest.empty, 'empty document')} and {counted(manifest.broken, 'broken record')}"
        why = "".join(f"; {example}" for example in manifest.examples)
        raise ValueError(f"{', '.join(sources)}: there is nothing but {left_out} here{why}")
    return manifest


def write_set(
    inputs: Sequence[Input],
    out: Path,
    description: Description,
    *,
    strict: bool = False,
    overwrite: bool = False,
    report: Report | None = None,
) -> Manifest:
    """Write the documents of the inputs to `out`, or the rest of them if that was begun.

    Where there is no byte there is no set either: the manifest that is returned lists no shard and is not written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        resumable = all(item.kind != "stream" for item in inputs)
        done = _finished(out, description, overwrite, resumable)
        progress = done or _begin(out, description, overwrite, resumable)
        if strict and progress.broken:
            refuse_broken(progress.examples[0])
        if isinstance(progress, Manifest):
            return progress
        preparation = _Preparation(out, progress, strict, report)
        preparation.run(inputs)
        manifest = preparation.manifest()
        if manifest.shards:
            publish_json(out / MANIFEST, manifest)
        (out / PROGRESS).unlink()
        return manifest


def identify(
    sources: Sequence[str],
    inputs: Sequence[Input],
    *,
    split: str = "train",
    subset: str | None = None,
    raw: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Description:
    """What identifies a set: the sources as they were named, every file's name, size and time, and the options."""
    listing = hashlib.sha256()
    for item in inputs:
        listing.update(repr(tuple(item)).encode("utf-8", "surrogateescape"))
    return Description(
        sources=tuple(printable(source) for source in sources),
        inputs=len(inputs),
        input_bytes=sum(item.size for item in inputs),
        listing=listing.hexdigest(),
        split=split,
        subset=subset,
        raw=raw,
        shard_bytes=shard_bytes,
    )


class _Preparation:
    """The state of one run: what has been published, and what the shard being written adds to it."""

    def __init__(self, out: Path, progress: Progress, strict: bool, report: Report | None) -> None:
        self.out, self.progress, self.report = out, progress, report
        self.shards = list(progress.shards)
        self.nbytes = sum(shard.bytes for shard in self.shards)
        self.documents = sum(shard.documents for shard in self.shards)
        self.tally = Tally(strict=strict)
        self.writer = ShardWriter(out, len(self.shards))
        self.count_from_progress()

    def count_from_progress(self) -> None:
        """Set the counts to those of the last shard: what comes before it has been counted already."""
        saved = self.progress
        self.tally.empty, self.tally.broken, self.tally.examples = saved.empty, saved.broken, list(saved.examples)

    def add(self, document: Document) -> None:
        """Write a document."""
        size = self.writer.add(document.name, document.chunks)
        if size:
            self.nbytes, self.documents = self.nbytes + size, self.documents + 1
            if self.report is not None:
                self.report(self.nbytes, self.documents)
        else:
            self.tally.empty += 1

    def publish(self, next_input: int, next_document: int) -> None:
        """Make the shard durable, then what to go on with."""
        self.shards.append(self.writer.publish())
        self.progress = Progress(
            source=self.progress.source,
            shards=tuple(self.shards),
            next_input=next_input,
            next_document=next_document,
            empty=self.tally.empty,
            broken=self.tally.broken,
            examples=tuple(self.tally.examples),
        )
        publish_json(self.out / PROGRESS, self.progress)
        self.writer = ShardWriter(self.out, len(self.shards))

    def run(self, inputs: Sequence[Input]) -> None:
        """Write all documents from where the progress says. What stops it leaves finished shards and no part of one."""
        source = self.progress.source
        reading = Reading(self.tally, split=source.split, subset=source.subset, raw=source.raw)
        first, done = self.progress.next_input, self.progress.next_document
        try:
            for number in range(first, len(inputs)):
                found = documents(inputs[number], reading)
                if number == first:
                    _pass_over(itertools.islice(found, done))
                    self.count_from_progress()
                for index, document in enumerate(found, start=1 + done * (number == first)):
                    self.add(document)
                    if self.writer.is_full(source.shard_bytes):
                        self.publish(number, index)
            if self.writer.nbytes:
                self.publish(len(inputs), 0)
        finally:
            self.writer.abandon()

    def manifest(self) -> Manifest:
        """What was written, once all is."""
        return Manifest(
            bytes=self.nbytes,
            documents=self.documents,
            empty=self.tally.empty,
            broken=self.tally.broken,
            examples=tuple(self.tally.examples),
            source=self.progress.source,
            shards=tuple(self.shards),
        )


def _pass_over(found: Iterator[Document]) -> None:
    for document in found:
        for _ in document.chunks:
            pass


def _finished(out: Path, description: Description, overwrite: bool, resumable: bool) -> Manifest | None:
    """The manifest if the set is done. Raises ValueError if the folder holds anything that must not be written over."""
    if not (out / MANIFEST).exists():
        names = {path.name for path in out.iterdir()} - {_LOCK, f"{PROGRESS}.tmp"}
        if names and PROGRESS not in names:
            raise ValueError(f"{out}: is not empty and no prepared set; choose another folder")
        return None
    if overwrite and is_set(out):
        _clear(out, description)
        return None
    manifest = read_manifest(out)
    if manifest.source != description or not resumable:
        raise ValueError(
            f"{out}: holds a set that was prepared from something else; choose another folder or overwrite it"
        )
    open_set(out, FileReader(), out.name)
    (out / PROGRESS).unlink(missing_ok=True)  # of a run that ended between its last two lines
    return manifest


def _begin(out: Path, description: Description, overwrite: bool, resumable: bool) -> Progress:
    """The progress to go on from, which is in the folder before any shard is."""
    if (out / PROGRESS).exists():
        try:
            progress = read_progress(out)
        except ValueError:
            if not overwrite:
                raise
            progress = None
        if progress is not None and progress.source == description and resumable:
            return progress
        if progress is not None and progress.source != description and not overwrite:
            raise ValueError(
                f"{out}: holds an unfinished set of something else (or its sources have changed since); choose another "
                "folder or overwrite it"
            )
    _clear(out, description)
    return Progress(source=description)


def _clear(out: Path, description: Description) -> None:
    """Make the folder an unfinished set with nothing done. Until the old manifest goes, the old set stays whole."""
    publish_json(out / PROGRESS, Progress(source=description))
    (out / MANIFEST).unlink(missing_ok=True)
    sync_folder(out)
    for path in out.iterdir():
        if path.name.startswith("shard-"):
            path.unlink()


def _check_apart(source: str, out: Path) -> None:
    """Refuse a source that would hold `out` too: once there, the set would become its own source."""
    folder = Path(source)
    if folder.is_dir():
        inside = out.resolve().is_relative_to(folder.resolve())
    else:
        place, pattern = out.absolute(), os.fspath(folder.absolute())
        inside = any(fnmatch.fnmatchcase(os.fspath(path), pattern) for path in (place, *place.parents))
    if inside:
        raise ValueError(
            f"{out}: lies inside the source {source}, of which it would become a part; choose another folder"
        )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder, so that two runs never write to it at once; the lock ends with the process.

    It is on a file because network file systems lock nothing that is not open for writing.
    """
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another run is preparing this folder; wait for it to end") from None
        try:
            yield
        finally:
            (out / _LOCK).unlink(missing_ok=True)
