"""What the bits of a model are held against: the words of a text and the size that xz gives it.

Both read a document in pieces, so that one of any size needs little memory.
"""

import lzma
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Pieces = Iterable[NDArray[np.uint8]]

_SPACE = np.zeros(256, np.bool_)
_SPACE[list(b" \t\n\v\f\r")] = True


def count_words(pieces: Pieces) -> int:
    """Words of a text: longest stretches without ASCII white space, as `wc -w` counts them."""
    words, after_space = 0, True
    for piece in pieces:
        space = _SPACE[piece]
        before = np.concatenate(([after_space], space[:-1]))
        words += int(np.count_nonzero(before & ~space))
        after_space = bool(space[-1])
    return words


def xz_size(pieces: Pieces) -> int:
    """Bytes of the file that `xz -9` would write."""
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, preset=9)
    size = sum(len(compressor.compress(piece.tobytes())) for piece in pieces)
    return size + len(compressor.flush())
