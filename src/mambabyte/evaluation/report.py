"""What an evaluation found, for each file and in total."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileReport:
    """One file of at least one byte; what concerns xz is None when xz was not run."""

    name: str
    bytes: int
    bits: float
    words: int
    xz_bytes: int | None

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of this file."""
        return self.bits / self.bytes

    @property
    def xz_bits_per_byte(self) -> float | None:
        """Bits that `xz -9` needs for a byte of this file, alone and with its header."""
        return None if self.xz_bytes is None else 8 * self.xz_bytes / self.bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "words": self.words,
            "bits_per_byte": self.bits_per_byte,
            "xz_bits_per_byte": self.xz_bits_per_byte,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Every file and the whole. Totals are over all bytes, not means of the files.

    Empty files are counted and left out: they have no byte to score. `context` and `stride` are in bytes, None where
    the mode has none; `seconds` is the model's time, without xz.
    """

    files: tuple[FileReport, ...]
    empty_files: int
    mode: str
    context: int | None
    stride: int | None
    seconds: float

    @property
    def bytes(self) -> int:
        """Bytes scored, each once."""
        return sum(file.bytes for file in self.files)

    @property
    def bits(self) -> float:
        """Bits that the model needs for all files."""
        return math.fsum(file.bits for file in self.files)

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte."""
        return self.bits / self.bytes

    @property
    def xz_bits_per_byte(self) -> float | None:
        """Bits that `xz -9` needs for a byte, each file compressed alone; None when xz was not run."""
        sizes = [file.xz_bytes for file in self.files if file.xz_bytes is not None]
        return 8 * sum(sizes) / self.bytes if len(sizes) == len(self.files) else None

    @property
    def words(self) -> int:
        """Words, as `wc -w` counts them."""
        return sum(file.words for file in self.files)

    @property
    def word_perplexity(self) -> float | None:
        """exp(nats / words); None without a word, or where it is too large for a float."""
        nats_per_word = self.bits * math.log(2) / self.words if self.words else math.inf
        return math.exp(nats_per_word) if nats_per_word < 700 else None

    @property
    def bytes_per_second(self) -> float:
        """Bytes scored in a second of the model's time."""
        return self.bytes / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a value that does not exist is None."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "bytes": self.bytes,
            "xz_bits_per_byte": self.xz_bits_per_byte,
            "words": self.words,
            "word_perplexity": self.word_perplexity,
            "mode": self.mode,
            "context": self.context,
            "stride": self.stride,
            "seconds": self.seconds,
            "bytes_per_second": self.bytes_per_second,
            "empty_files": self.empty_files,
            "files": [file.to_dict() for file in self.files],
        }
