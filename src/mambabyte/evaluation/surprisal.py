"""Bits for every byte of one file: where a model is surprised."""

import dataclasses
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambabyte.evaluation.plan import Mode, Plan
from mambabyte.evaluation.scoring import score
from mambabyte.models import ByteLM


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one place of a heat map shows: a UTF-8 character, or one byte that is part of none.

    `text` is harmless to print: what is not printable is an escape (`is_escape`). `bits` are a mean over bytes
    [start, stop).
    """

    text: str
    start: int
    stop: int
    bits: float
    is_escape: bool = False
    is_newline: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surprisal:
    """A file, `data` (bytes,) uint8, and -log2 p of each byte, `bits` (bytes,) float64."""

    name: str
    data: NDArray[np.uint8]
    bits: NDArray[np.float64]
    mode: str
    context: int | None
    stride: int | None

    @property
    def bits_per_byte(self) -> float:
        """The mean, which is what `evaluate` reports."""
        return float(self.bits.mean())

    def cells(self, stop: int | None = None) -> Iterator[Cell]:
        """The first `stop` bytes, or all, character by character in the file's order."""
        start = 0
        for character in self.data[:stop].tobytes().decode("utf-8", "surrogateescape"):
            lone = "\udc80" <= character <= "\udcff"  # Python's mark for a byte that is no UTF-8
            count = 1 if lone else len(character.encode())
            text = f"\\x{ord(character) - 0xDC00:02x}" if lone else _harmless(character)
            bits = float(self.bits[start : start + count].mean())
            is_escape = lone or not character.isprintable()
            yield Cell(text, start, start + count, bits, is_escape, character == "\n")
            start += count

    def profile(self, pieces: int) -> NDArray[np.float64]:
        """Mean bits of at most `pieces` stretches of the file, of equal length but for rounding."""
        edges = np.linspace(0, len(self.bits), min(pieces, len(self.bits)) + 1).astype(np.int64)
        return np.add.reduceat(self.bits, edges[:-1]) / np.diff(edges)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `bits` holds one number for each byte of the file."""
        return {
            "file": self.name,
            "bytes": len(self.bits),
            "bits_per_byte": self.bits_per_byte,
            "mode": self.mode,
            "context": self.context,
            "stride": self.stride,
            "bits": self.bits.tolist(),
        }

    def save_npz(self, path: str | Path) -> None:
        """Write a NumPy archive of `data` and `bits` to exactly this path."""
        with Path(path).open("wb") as file:
            np.savez_compressed(file, data=self.data, bits=self.bits)


@dataclasses.dataclass(frozen=True)
class _Document:
    """The one document of `score`."""

    name: str
    data: NDArray[np.uint8]

    @property
    def offsets(self) -> NDArray[np.int64]:
        return np.array([0, len(self.data)])

    @property
    def names(self) -> tuple[str]:
        return (self.name,)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.data[start:stop]


def surprisal(
    model: ByteLM,
    source: bytes | str | Path,
    *,
    mode: Mode = "stream",
    context: int | None = None,
    stride: int | None = None,
    batch: int | None = None,
    chunk: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Surprisal:
    """Bits for every byte of one file, or of bytes given as such; the options are those of `evaluate`, so is the sum.

    The file is taken as it lies, whatever its kind: a compressed one is not unpacked. Raises ValueError where there is
    no byte, and as `evaluate` does.
    """
    plan = Plan(mode=mode, context=context, stride=stride)
    name, given = ("bytes", source) if isinstance(source, bytes) else (str(source), Path(source).read_bytes())
    if not given:
        raise ValueError(f"{name}: empty, there is no byte to be surprised at")
    document = _Document(name, np.frombuffer(given, np.uint8))
    bits = np.empty(len(given), np.float64)
    for piece in score(model, document, plan, batch=batch, chunk=chunk):
        bits[piece.start : piece.start + len(piece.bits)] = piece.bits
        if progress is not None:
            progress(len(piece.bits))
    return Surprisal(
        name=name,
        data=document.data,
        bits=bits,
        mode=plan.mode,
        **plan.reported,
    )


def _harmless(character: str) -> str:
    """The character if it prints as one, else an escape; an accent that would join its neighbour gets a circle."""
    if unicodedata.category(character) in ("Mn", "Me", "Mc"):
        return f"\u25cc{character}"
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
