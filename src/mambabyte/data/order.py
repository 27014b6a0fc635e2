"""The order of training windows: a permutation that is computed, never stored.

`order(index, size, key)` is where the index-th draw of one pass lies, for any size, without memory: shuffling two
billion windows costs as much as shuffling two. The key changes with the seed, the pass and the share of a mixture, so
every pass is shuffled afresh.
"""

import functools
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

_logger = logging.getLogger("mambabyte.data")
# grain documents its shuffle for 32-bit indices, and walks through 2^16 values whatever the size: measured on one core,
# 2 ms a draw at size 8, 12 us at 2048, 4 us from 2^15 on; the Feistel network takes 4 us at every size.
_GRAIN_SIZES = range(1 << 11, (1 << 32) + 1)
_ROUNDS = 6
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class Order:
    """A family of permutations. `name` belongs to what a resumed run must find unchanged."""

    name: str
    permute: Callable[[int, int, int], int]

    def __call__(self, index: int, size: int, key: int) -> int:
        """Image of `index` in the permutation of range(size) that the 32-bit `key` selects."""
        assert 0 <= index < size
        return self.permute(index, size, key)


def choose_order() -> Order:
    """grain's permutation where grain is installed (for sizes that suit it), else a Feistel network throughout."""
    try:
        _grain_index_shuffle()
    except ImportError as error:
        _say_once(f"windows are shuffled by the built-in Feistel permutation, as grain is not to be had: {error}")
        return FEISTEL
    return GRAIN


def pass_key(seed: int, share: int, lap: int) -> int:
    """32-bit key of one pass: unrelated keys for neighbouring seeds, shares and laps."""
    digest = hashlib.blake2b(f"{seed} {share} {lap}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


@functools.cache
def _say_once(sentence: str) -> None:
    _logger.warning(sentence)


@functools.cache
def _grain_index_shuffle() -> Callable[..., int]:
    # grain's imports report through absl that JAX, which nothing here needs, is absent.
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        from grain.experimental import index_shuffle
    finally:
        absl.setLevel(level)
    return index_shuffle


def _permute_by_grain(index: int, size: int, key: int) -> int:
    if size not in _GRAIN_SIZES:
        return _permute_by_feistel(index, size, key)
    return int(_grain_index_shuffle()(index, max_index=size - 1, seed=key, rounds=4))


def _permute_by_feistel(index: int, size: int, key: int) -> int:
    """A Feistel network over the smallest power of two that holds `size`, walked until it lands inside.

    Each round is invertible, hence the network is a permutation; following its cycle from a point inside until the next
    point inside is again one, of range(size) (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    """
    bits = max(2, (size - 1).bit_length())
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    while True:
        low, high = index & low_mask, index >> low_bits
        for number in range(_ROUNDS):
            if number % 2:
                high ^= _scramble(low, key, number) & high_mask
            else:
                low ^= _scramble(high, key, number) & low_mask
        index = high << low_bits | low
        if index < size:
            return index


def _scramble(half: int, key: int, number: int) -> int:
    """64 well-mixed bits of the arguments: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    bits = (half + (key << 32) + number * 0x9E3779B97F4A7C15) & _MASK_64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & _MASK_64
    return bits ^ bits >> 31


GRAIN = Order("grain-4-or-feistel-6", _permute_by_grain)
FEISTEL = Order("feistel-6", _permute_by_feistel)
