"""A subword vocabulary over bytes: byte-level BPE, learnt from any bytes by the `tokenizers` library.

Every byte is a symbol, spelt with the printable alphabet of GPT-2's byte-level BPE, so that no input is unknown and any
bytes, UTF-8 or not, are encoded and given back exactly. The file is an ordinary tokenizer.json.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mambabyte.data.corpus import Corpus

FILE = "subwords.json"
PIECE = 1 << 16  # bytes of text that are cut into words at a time
# Subwords of a vocabulary: one for each byte; the learner makes room for all that are asked for.
FEWEST, MOST = 256, 1 << 20
SAMPLE = 16 << 20  # bytes that a vocabulary of a corpus is learnt from at most: three seconds for 4,096 subwords
# Text repeats its words: with those of the latest 10 MB or so kept, a core cuts 15 to 20 MB a second instead of 5.
WORDS_KEPT, LONGEST_KEPT = 1 << 17, 32
LONGEST_WORD = 64  # bytes of a word that is not over, after which a new one is taken to begin

# Words as bytes: a space and what follows of one kind (letters and bytes beyond ASCII, digits, signs), or white space.
_WORD = re.compile(rb" ?[A-Za-z_\x80-\xff]+| ?[0-9]{1,3}| ?[!-/:-@\[-^`{-~]+|[\x00-\x20\x7f]+", re.DOTALL)


class Subwords:
    """Ids of byte strings. `pieces[id]` are the bytes of a subword; every single byte is one.

    Raises ValueError for a tokenizer that is not of this kind.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._words = _Words(tokenizer)
        byte_of = {symbol: byte for byte, symbol in enumerate(symbols())}
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        try:
            self.pieces = [bytes(byte_of[symbol] for symbol in piece) for piece, _ in vocabulary]
        except KeyError as error:
            raise ValueError(f"not a byte-level vocabulary: it has the symbol {error}") from error
        if missing := 256 - len({piece for piece in self.pieces if len(piece) == 1}):
            raise ValueError(f"not a byte-level vocabulary: {missing} bytes are no subwords of their own")
        if [number for _, number in vocabulary] != list(range(count := len(vocabulary))):
            raise ValueError(f"not a vocabulary of {count} subwords: their ids are not 0 to {count - 1}")

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def learn(cls, texts: Iterable[bytes], size: int) -> Self:
        """A vocabulary of at most `size` subwords, by byte-pair encoding. Raises ValueError for `size` out of range."""
        from tokenizers import Tokenizer, decoders, models, normalizers, trainers

        if not FEWEST <= size <= MOST:
            raise ValueError(f"a subword vocabulary has at least {FEWEST} entries and at most {MOST:,}, got {size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.ByteLevel()
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=symbols(), show_progress=False)
        plain = Tokenizer(models.BPE())  # the words are spelt already, and no normaliser may spell them twice
        plain.train_from_iterator(_words(texts), trainer)
        tokenizer.model = plain.model
        return cls(tokenizer)

    @classmethod
    def of(cls, corpus: "Corpus", size: int) -> Self:
        """The vocabulary of a corpus, learnt from all of it or from `SAMPLE` bytes spread evenly over it."""
        return cls.learn(sample(corpus, SAMPLE), size)

    def encode(self, data: bytes) -> list[int]:
        """The ids of `data`, whose pieces joined are `data`."""
        self._words.tidy()
        return list(chain.from_iterable(map(self._words.__getitem__, _WORD.findall(data))))

    @staticmethod
    def last_word(data: bytes) -> int:
        """Where the last word of `data` begins: what comes before it is cut into subwords alike whatever follows.

        Text without spaces, as Chinese or a genome, is one word; that would be cut, and read, from its beginning again
        and again. So a word is taken to begin anew every `LONGEST_WORD` bytes, though subwords may lie across.
        """
        words = _WORD.findall(data)
        return len(data) - (len(words[-1]) - 1) % LONGEST_WORD - 1 if words else 0

    def write(self, path: Path) -> None:
        """Write the vocabulary to a file."""
        self._tokenizer.save(str(path), pretty=False)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The vocabulary in a model's folder. Raises ValueError if it is damaged, OSError if there is none."""
        from tokenizers import Tokenizer

        path = Path(folder) / FILE
        data = path.read_bytes()
        try:
            tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises no narrower one for a wrong file
            raise ValueError(f"{path}: damaged, or no tokenizer: {error}; copy the folder again") from error
        try:
            return cls(tokenizer)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; copy the folder again") from error

    @cached_property
    def numbers(self) -> dict[bytes, int]:
        """The id of each piece."""
        return {piece: number for number, piece in enumerate(self.pieces)}


class _Words(dict[bytes, list[int]]):
    """The ids of each word, found when first asked for."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        super().__init__()
        self._tokenize = tokenizer.model.tokenize

    def __missing__(self, word: bytes) -> list[int]:
        ids = [token.id for token in self._tokenize(_spell(word))]
        if len(word) <= LONGEST_KEPT:
            self[word] = ids
        return ids

    def tidy(self) -> None:
        """Forget all when it is too much."""
        if len(self) > WORDS_KEPT:
            self.clear()


def sample(corpus: "Corpus", most: int) -> Iterator[bytes]:
    """Pieces of a corpus, `most` bytes or fewer in all, spread evenly over each share according to its weight."""
    weights = sum(share.weight for share in corpus.shares)
    for share in corpus.shares:
        size, room = share.stop - share.start, int(most * share.weight / weights)
        piece = min(PIECE, room)
        count = -(-size // max(piece, 1)) if size <= room else room // max(piece, 1)
        starts = (i * piece if size <= room else i * (size - piece) // max(count - 1, 1) for i in range(count))
        for start in starts:
            yield corpus.read(share.start + start, min(share.start + start + piece, share.stop)).tobytes()


def symbols() -> list[str]:
    """The printable character that stands for each byte: itself where Latin-1 prints it, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_SPELLING = dict(enumerate(symbols()))


def _spell(word: bytes) -> str:
    return word.decode("latin-1").translate(_SPELLING)


def _words(texts: Iterable[bytes]) -> Iterator[list[str]]:
    """Lists of spelt words; the trainer counts each as it is."""
    for text in texts:
        for start in range(0, len(text), PIECE):
            yield [_spell(word) for word in _WORD.findall(text[start : start + PIECE])]
