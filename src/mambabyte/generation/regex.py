r"""Regular expressions over text, as expressions over its UTF-8 bytes.

Known: literals, `.` (any character but a newline), classes `[a-z]` and `[^...]`, `\d \w \s` (ASCII) and their capitals,
`\n \t \r \f \v \xHH \uHHHH`, groups `(...)` and `(?:...)`, `|`, and `* + ? {n} {n,} {n,m}`. A pattern matches the
whole output; `^` and `$` may stand at its ends and change nothing. Backreferences, look-around and lazy quantifiers are
refused, for they are not regular or mean nothing here.
"""

from collections.abc import Callable, Iterable
from string import hexdigits

from mambabyte.generation.automaton import EMPTY, Expression, OneOf, choice, repeat, sequence

Ranges = list[tuple[int, int]]  # of code points, inclusive
Encoder = Callable[[Ranges], Expression]

LAST = 0x10FFFF
MOST = 1000  # repetitions in {n,m}: a bound on the automaton, and on a typing error
_CLASSES: dict[str, Ranges] = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [(0x09, 0x0D), (0x20, 0x20)],
}
_ESCAPES = {"n": 0x0A, "t": 0x09, "r": 0x0D, "f": 0x0C, "v": 0x0B, "0": 0x00}


def parse(pattern: str, encode: Encoder | None = None) -> Expression:
    """The expression of a pattern. `encode` turns a set of characters into bytes; UTF-8 unless given.

    Raises ValueError, naming the place, for a pattern that is wrong or not known here.
    """
    return _Parser(pattern, encode or utf8).parse()


def utf8(ranges: Ranges) -> Expression:
    """One character of the ranges, in UTF-8; surrogates have none."""
    parts = [
        sequence(*(OneOf((pair,)) for pair in split))
        for low, high in ranges
        for a, b in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high))
        for split in _split(a, b)
    ]
    return choice(*parts)


def _split(low: int, high: int) -> Iterable[tuple[tuple[int, int], ...]]:
    """Cut a range of code points into products of byte ranges."""
    if low > high:
        return
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            yield from _split(low, last)
            yield from _split(last + 1, high)
            return
    for bits in (6, 12, 18):
        tail = (1 << bits) - 1
        if low | tail < high | tail and high > 0x7F:
            if low & tail:
                yield from _split(low, low | tail)
                yield from _split((low | tail) + 1, high)
                return
            if high & tail != tail:
                yield from _split(low, (high & ~tail) - 1)
                yield from _split(high & ~tail, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))


def negate(ranges: Ranges) -> Ranges:
    """The characters outside the ranges."""
    outside, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            outside.append((start, low - 1))
        start = max(start, high + 1)
    return [*outside, (start, LAST)] if start <= LAST else outside


class _Parser:
    def __init__(self, pattern: str, encode: Encoder) -> None:
        self.pattern, self.encode = pattern, encode
        self.at, self.end = 0, len(pattern)

    def parse(self) -> Expression:
        if self.pattern.startswith("^"):
            self.at = 1
        if self.pattern.endswith("$") and not self.pattern.endswith("\\$"):
            self.end -= 1
        if lone := next((i for i, c in enumerate(self.pattern, 1) if 0xD800 <= ord(c) < 0xE000), None):
            self.at = lone
            raise self.wrong("a character that is no UTF-8, which no output has")
        found = self.alternatives()
        if self.at < self.end:
            raise self.wrong("an unmatched )")
        return found

    def alternatives(self) -> Expression:
        parts = [self.concatenation()]
        while self.peek() == "|":
            self.at += 1
            parts.append(self.concatenation())
        return choice(*parts)

    def concatenation(self) -> Expression:
        parts = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.quantified())
        return sequence(*parts) if parts else EMPTY

    def quantified(self) -> Expression:
        part = self.atom()
        while self.peek() in ("*", "+", "?", "{"):
            least, most = self.counts()
            if self.peek() in ("?", "+"):
                raise self.wrong("a lazy or possessive quantifier, which means nothing here")
            part = repeat(part, least, most)
        return part

    def counts(self) -> tuple[int, int | None]:
        symbol = self.take()
        if symbol != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[symbol]
        close = self.pattern.find("}", self.at, self.end)
        first, comma, last = self.pattern[self.at : close].partition(",")
        if close < 0 or not first.isdecimal() or not (last.isdecimal() or not last):
            raise self.wrong("a { that begins no {n}, {n,} or {n,m}; write \\{ for the character")
        self.at = close + 1
        least = int(first)
        most = int(last) if last else None if comma else least
        if least > MOST or (most is not None and not least <= most <= MOST):
            raise self.wrong(f"a repetition out of order or of more than {MOST}")
        return least, most

    def atom(self) -> Expression:
        symbol = self.take()
        if symbol == "(":
            return self.group()
        if symbol == "[":
            return self.encode(self.set())
        if symbol == ".":
            return self.encode(negate([(0x0A, 0x0A)]))
        if symbol == "\\":
            return self.encode(self.escape())
        if symbol in "*+?{^$":
            raise self.wrong(f"a {symbol} with no meaning; write \\{symbol} for the character")
        return self.encode([(ord(symbol), ord(symbol))])

    def group(self) -> Expression:
        if self.peek() == "?":
            self.at += 1
            if self.take() != ":":
                raise self.wrong("a (?...) group other than (?:...)")
        inner = self.alternatives()
        if self.peek() != ")":
            raise self.wrong("a ( that is not closed")
        self.at += 1
        return inner

    def set(self) -> Ranges:
        negated = self.peek() == "^"
        self.at += negated
        ranges: Ranges = []
        first = True
        while first or self.peek() != "]":
            ranges += self.member()
            first = False
        self.at += 1
        return negate(ranges) if negated else ranges

    def member(self) -> Ranges:
        low = self.escape() if (symbol := self.take()) == "\\" else [(ord(symbol), ord(symbol))]
        if self.peek() != "-" or self.pattern[self.at + 1 : self.at + 2] in ("]", ""):
            return low
        self.at += 1
        high = self.escape() if (symbol := self.take()) == "\\" else [(ord(symbol), ord(symbol))]
        if len(low) > 1 or len(high) > 1 or low[0][0] != low[0][1] or high[0][1] < low[0][0]:
            raise self.wrong("a range that runs backwards or from a class")
        return [(low[0][0], high[0][1])]

    def escape(self) -> Ranges:
        symbol = self.take()
        if symbol.lower() in _CLASSES:
            ranges = _CLASSES[symbol.lower()]
            return ranges if symbol.islower() else negate(ranges)
        if symbol in "xu":
            return [(code := self.hexadecimal(2 if symbol == "x" else 4), code)]
        if symbol in _ESCAPES:
            return [(_ESCAPES[symbol], _ESCAPES[symbol])]
        if symbol.isalnum():
            raise self.wrong(f"the escape \\{symbol}, which is not known here")
        return [(ord(symbol), ord(symbol))]

    def hexadecimal(self, digits: int) -> int:
        text = self.pattern[self.at : min(self.at + digits, self.end)]
        if len(text) < digits or not set(text) <= set(hexdigits):
            raise self.wrong(f"an escape without {digits} hexadecimal digits")
        self.at += digits
        return int(text, 16)

    def peek(self) -> str:
        return self.pattern[self.at] if self.at < self.end else ""

    def take(self) -> str:
        if self.at >= self.end:
            raise self.wrong("an end too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"the regular expression {self.pattern!r} has {what}, at character {self.at}")
