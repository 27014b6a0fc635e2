"""Files that are whole or absent: staged under a temporary name, flushed to the disk, renamed, and listed by checksum.

A flipped bit in a safetensors file loads without a word, so every folder of ours carries `SHA256SUMS`, in the format of
`sha256sum -c`. It is renamed last; a folder whose files do not match it was damaged or only half replaced.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\0]+)")
_SUMS_LIMIT = 1 << 20

Writer = Callable[[Path], None]


def write_files(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Write files into `folder` (made if missing) by their writers, each given the path to write, then SHA256SUMS.

    Nothing that was there is touched before every new file is complete on the disk. Raises ValueError if `folder` is a
    file, OSError if the disk is full; a failed call leaves no temporary file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{folder}: cannot be a model folder, for there is a file in its place") from error
    staged = {name: folder / f".{name}.{os.getpid()}.tmp" for name in (*writers, SUMS)}
    try:
        for name, write in writers.items():
            write(staged[name])
        lines = (f"{digest(staged[name])}  {name}\n" for name in writers)
        staged[SUMS].write_text("".join(lines), encoding="utf-8")
        for path in staged.values():
            sync(path)
        for name, path in staged.items():
            path.replace(folder / name)
        sync(folder)
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)


def json_writer(value: Mapping[str, Any]) -> Writer:
    """A writer of `value` as indented JSON."""
    return text_writer(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def text_writer(text: str) -> Writer:
    """A writer of `text` in UTF-8."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Compare every file that `folder/SHA256SUMS` lists with its checksum; a folder without the list passes.

    Raises ValueError naming the first file that is missing or differs.
    """
    for name, expected in _read_sums(folder / SUMS).items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder}: {name} is missing, which {SUMS} lists; copy the whole folder again")
        if digest(path) != expected:
            raise ValueError(
                f"{path}: its contents do not match {SUMS}: the file is damaged or was changed after it was saved; copy"
                f" it again, or delete {SUMS} if the change was yours"
            )


def _read_sums(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    if path.stat().st_size > _SUMS_LIMIT:
        raise ValueError(f"{path}: larger than {_SUMS_LIMIT} bytes, which no list of checksums of ours is")
    sums = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: damaged: {line[:80]!r} is not a checksum and a file name")
        sums[match[2]] = match[1]
    return sums
