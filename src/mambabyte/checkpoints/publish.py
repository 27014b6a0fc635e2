"""A folder on disk is there whole or not at all: write aside, checksum, fsync, rename.

The order is what makes it safe. Everything is written to `NAME.tmp/`; `manifest.json`, last, holds the size and the
SHA-256 of every file; each file and the folder are flushed to the disk; then one rename makes `NAME/` appear and the
parent is flushed. A process killed at any moment leaves either no `NAME/` or a whole one, and a bit that flips later is
found by `damage`.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mambabyte.checkpoints.files import digest, sync
from mambabyte.config import load_json

MANIFEST = "manifest.json"
TEMPORARY = ".tmp"


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` appear with the files that `write(folder_to_fill)` leaves in the folder it is given.

    A folder already of that name is replaced. On any error what was half written is removed, `folder` stays as it was
    and the error is raised again.
    """
    aside = folder.with_name(folder.name + TEMPORARY)
    discard(aside)
    try:
        aside.mkdir(parents=True)
        write(aside)
        _seal(aside)
        if folder.exists():
            discard(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(folder.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a published folder, as a phrase; None when every file is as it was written."""
    try:
        files = load_json(folder / MANIFEST)["files"]
        named = [(folder / name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except ValueError as error:
        return str(error)
    except (KeyError, TypeError, AttributeError):
        return f"{folder / MANIFEST}: not a manifest"
    for path, size, checksum in named:
        try:
            if path.stat().st_size != size:
                return f"{path}: {path.stat().st_size} bytes where {size} were written"
            if digest(path) != checksum:
                return f"{path}: its SHA-256 is not the one that was written"
        except OSError as error:
            return f"{path}: {error.strerror}"
    return None


def discard(folder: Path) -> None:
    """Remove a folder in such an order that it never lies there half removed under its own name."""
    if not folder.exists():
        return
    if not folder.name.endswith(TEMPORARY):
        old = folder.with_name(f"{folder.name}.old{TEMPORARY}")
        discard(old)
        folder = folder.rename(old)
    shutil.rmtree(folder)


def write_text(path: Path, text: str) -> None:
    """Replace a small file in one step: it holds the old text or the new one, whatever happens."""
    aside = path.with_name(path.name + TEMPORARY)
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync(path.parent)


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for path in files:
        sync(path)
        entries[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    write_text(folder / MANIFEST, json.dumps({"files": entries}, indent=2) + "\n")
    for inner in {path.parent for path in files}:
        sync(inner)
