import lzma
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabyte.evaluation.yardsticks import count_words, xz_size


def cut(data: bytes, size: int = 1 << 20) -> list[np.ndarray]:
    return [np.frombuffer(data[i : i + size], np.uint8) for i in range(0, len(data), size)]


@given(st.lists(st.sampled_from(list(b" \t\n\v\f\r\0a\x1c\x85\xa0\xff"))), st.integers(1, 9))
def test_words_are_separated_by_ascii_white_space(numbers: list[int], piece: int) -> None:
    data = bytes(numbers)
    assert count_words(cut(data, piece)) == len(data.split())


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_pieces_do_not_change_what_xz_writes(piece: int) -> None:
    data = b"one two  three\nfour\r\nfive " * 30
    assert xz_size(cut(data, piece)) == len(lzma.compress(data, preset=9))


@pytest.mark.skipif(shutil.which("xz") is None, reason="no xz program to compare with")
@pytest.mark.parametrize("data", [b"", b"a", bytes(range(256)) * 5, b"hello world\n" * 10_000])
def test_xz_size_is_that_of_the_program(data: bytes) -> None:
    written = subprocess.run(["xz", "-9", "-T1", "-c"], input=data, capture_output=True, check=True).stdout
    assert xz_size(cut(data)) == len(written)
