"""Bytes as text while they arrive: whole characters only, and nothing that a terminal would obey."""

import codecs

_BIDIRECTIONAL = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # reorder what is shown around them


class IncrementalText:
    """UTF-8 bytes in pieces of any size -> text; the pieces' texts join to `whole.decode("utf-8", "replace")`.

    A character is given when its last byte has come. Bytes that are no UTF-8 become U+FFFD as soon as that is certain.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: bytes) -> str:
        """The text that `piece` completes."""
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """No more bytes come: an unfinished character is U+FFFD."""
        return self._decoder.decode(b"", final=True)


def visible(text: str) -> str:
    r"""The text with control characters (C0 but \n and \t, DEL, C1, bidirectional overrides) and lone surrogates, which
    no encoding writes, as escapes like \x1b."""
    return "".join(c.encode("unicode_escape").decode("ascii") if _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    code = ord(character)
    control = (code < 0x20 and character not in "\n\t") or 0x7F <= code < 0xA0
    return control or code in _BIDIRECTIONAL or 0xD800 <= code < 0xE000
