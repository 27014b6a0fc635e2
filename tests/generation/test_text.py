"""Text from bytes that arrive in pieces."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mambabyte.generation.text import IncrementalText, visible

BYTES = st.one_of(
    st.binary(), st.text().map(str.encode), st.lists(st.sampled_from([b"\xf0", b"\x9f", b"\x92", b"a"])).map(b"".join)
)


@given(BYTES, st.data())
def test_any_pieces_give_the_text_of_the_whole(data, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)))))
    decoder, text = IncrementalText(), ""
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        text += decoder.push(data[start:end])
    assert text + decoder.finish() == data.decode("utf-8", "replace")


@given(st.text())
def test_a_character_comes_with_its_last_byte(text):
    decoder = IncrementalText()
    for character in text:
        *first, last = character.encode()
        assert decoder.push(bytes(first)) == ""
        assert decoder.push(bytes([last])) == character


def test_an_impossible_byte_is_replaced_at_once():
    decoder = IncrementalText()
    assert decoder.push(b"\xff") == "\ufffd"
    assert decoder.push(b"\xf0\x9f") == ""
    assert decoder.push(b"a") == "\ufffda"


@given(st.text())
def test_visible_text_has_no_control_characters(text):
    shown = visible(text)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in shown)
    if not any(unicodedata.category(c) in ("Cc", "Cf") for c in text):
        assert shown == text


def test_escapes_show_what_was_there():
    assert visible("a\x1b[31mb\x7f\x9b\r\x00\n\té\u202e") == r"a\x1b[31mb\x7f\x9b\r\x00" + "\n\té" + r"\u202e"
    assert visible("\udcff\u3000") == r"\udcff" + "\u3000"
