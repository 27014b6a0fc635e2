"""A subword vocabulary over bytes: byte-level BPE, learnt from any bytes by the `tokenizers` library.

Every byte is a symbol, spelt with the printable alphabet of GPT-2's byte-level BPE, so that no input is unknown and any
bytes, UTF-8 or not, are encoded and given back exactly. The file is an ordinary tokenizer.json.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "subwords.json"
PIECE = 1 << 16  # bytes of text that the trainer is handed at a time

# Words as bytes: a space and what follows of one kind (letters and bytes beyond ASCII, digits, signs), or white space.
_WORD = re.compile(rb" ?[A-Za-z_\x80-\xff]+| ?[0-9]{1,3}| ?[!-/:-@\[-^`{-~]+|[\x00-\x20\x7f]+", re.DOTALL)


class Subwords:
    """Ids of byte strings. `pieces[id]` are the bytes of a subword; every single byte is one."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        byte_of = {symbol: byte for byte, symbol in enumerate(_symbols())}
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        try:
            self.pieces = [bytes(byte_of[symbol] for symbol in piece) for piece, _ in vocabulary]
        except KeyError as error:
            raise ValueError(f"not a byte-level vocabulary: it has the symbol {error}") from error
        if missing := 256 - len({piece for piece in self.pieces if len(piece) == 1}):
            raise ValueError(f"not a byte-level vocabulary: {missing} bytes are no subwords of their own")

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def learn(cls, texts: Iterable[bytes], size: int) -> Self:
        """A vocabulary of at most `size` subwords, by byte-pair encoding. Raises ValueError for fewer than 256."""
        from tokenizers import Tokenizer, decoders, models, normalizers, trainers

        if size < 256:
            raise ValueError(f"a subword vocabulary has at least 256 entries, one for each byte, got {size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.ByteLevel()
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=_symbols(), show_progress=False)
        plain = Tokenizer(models.BPE())  # the words are spelt already, and no normaliser may spell them twice
        plain.train_from_iterator(_words(texts), trainer)
        tokenizer.model = plain.model
        return cls(tokenizer)

    def encode(self, data: bytes) -> list[int]:
        """The ids of `data`, whose pieces joined are `data`."""
        tokenize = self._tokenizer.model.tokenize
        return [token.id for word in _WORD.findall(data) for token in tokenize(_spell(word))]

    def save(self, folder: str | Path) -> None:
        """Write the vocabulary into a model's folder."""
        self._tokenizer.save(str(Path(folder) / FILE), pretty=False)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The vocabulary in a model's folder. Raises ValueError if it is damaged, OSError if there is none."""
        from tokenizers import Tokenizer

        text = (Path(folder) / FILE).read_text(encoding="utf-8")
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower one for a wrong file
            raise ValueError(f"{Path(folder) / FILE}: not a tokenizer: {error}") from error
        return cls(tokenizer)

    @cached_property
    def numbers(self) -> dict[bytes, int]:
        """The id of each piece."""
        return {piece: number for number, piece in enumerate(self.pieces)}

    @cached_property
    def sorted(self) -> "SortedPieces":
        """The pieces in lexicographic order."""
        return SortedPieces(self.pieces)


class SortedPieces:
    """Pieces in lexicographic order, so that those with a common beginning are neighbours."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.ids = np.array(sorted(range(len(pieces)), key=pieces.__getitem__))
        self.pieces = [pieces[i] for i in self.ids]
        width = max(map(len, pieces)) + 1
        self._bytes = np.full((len(pieces), width), 256)  # 256: the piece has ended
        for row, piece in zip(self._bytes, self.pieces, strict=True):
            row[: len(piece)] = list(piece)

    def beginning_with(self, data: bytes) -> slice:
        """The pieces that begin with `data`; the piece that is `data`, if any, is the first."""
        low = bisect_left(self.pieces, data)
        return slice(low, bisect_right(self.pieces, data, lo=low, key=lambda piece: piece[: len(data)]))

    def next_bytes(self, where: slice, depth: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(257,) the sum of `weights` over the pieces of `where` by their byte at `depth`; last, those that ended.

        `where` is not empty, and `depth` is the length of a beginning that they share.
        """
        return np.bincount(self._bytes[where, depth], weights[where], minlength=257).astype(np.float64)


def _symbols() -> list[str]:
    """The printable character that stands for each byte: itself where Latin-1 prints it, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_SPELLING = dict(enumerate(_symbols()))


def _spell(word: bytes) -> str:
    return word.decode("latin-1").translate(_SPELLING)


def _words(texts: Iterable[bytes]) -> Iterator[list[str]]:
    """Lists of spelt words; the trainer counts each as it is."""
    for text in texts:
        for start in range(0, len(text), PIECE):
            yield [_spell(word) for word in _WORD.findall(text[start : start + PIECE])]
