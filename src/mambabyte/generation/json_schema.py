"""JSON schemas as expressions over bytes: every word is JSON text that the schema accepts.

The text has no white space but an optional space after each comma and colon. The properties of an object come in the
schema's order, and only those it names. Numbers have at most 16 digits before and after the point. oneOf is read as
anyOf. A keyword that could not be kept is refused, not ignored. https://json-schema.org/draft/2020-12
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mambabyte.config import unknown
from mambabyte.generation import regex
from mambabyte.generation.automaton import EMPTY, Expression, Joined, Members, choice, literal, repeat, sequence, words

DEPTH = 4  # of arrays and objects inside a value of which nothing is said
DIGITS = 16
LIMIT = 10**DIGITS - 1
MOST_VALUES = 1 << 14  # that a schema spells out to, references followed: those to each other grow exponentially

_ANNOTATIONS = frozenset(
    ["$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "format"]
)
_STRING = ("minLength", "maxLength", "pattern")
_ARRAY = ("items", "prefixItems", "minItems", "maxItems")
_OBJECT = ("properties", "required", "additionalProperties")
_INTEGER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_WHOLE = ("$ref", "const", "enum", "anyOf", "oneOf")
_KNOWN = (*_STRING, *_ARRAY, *_OBJECT, *_INTEGER, "type", *_WHOLE)

COMMA, COLON = (sequence(literal(mark), repeat(literal(b" "), 0, 1)) for mark in (b",", b":"))


def parse(schema: Mapping[str, Any] | bool) -> Expression:
    """The expression of a schema. Raises ValueError, naming the place, for one that is wrong or cannot be kept."""
    return _Reader(schema).value(schema, "#", ())


class _Reader:
    def __init__(self, root: Any) -> None:
        self.root = root
        self.values = 0

    def value(self, schema: Any, where: str, inside: tuple[str, ...]) -> Expression:
        """A value that `schema` (found at `where`, by way of the references `inside`) accepts."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise ValueError(
                f"JSON schema, {where}: over {MOST_VALUES:,} values, references followed; use fewer of them"
            )
        if schema is True:
            return anything(DEPTH)
        if not isinstance(schema, Mapping):
            raise ValueError(f"JSON schema, {where}: expected an object or true, got {schema!r}")
        for key in schema:
            if key not in _KNOWN and key not in _ANNOTATIONS:
                raise ValueError(unknown(f"JSON schema, {where}: keyword", key, _KNOWN))
        for key in _WHOLE:
            if key in schema:
                if beside := set(schema) - {key, *_ANNOTATIONS} - ({"type"} if key in ("const", "enum") else set()):
                    raise ValueError(f"JSON schema, {where}: {sorted(beside)} cannot be kept beside {key}")
                return self.whole(key, schema, where, inside)
        return self.typed(schema, where, inside)

    def whole(self, key: str, schema: Mapping[str, Any], where: str, inside: tuple[str, ...]) -> Expression:
        """A value by one keyword that says everything."""
        if key == "$ref":
            return self.reference(schema[key], where, inside)
        if key in ("const", "enum"):
            values = [schema[key]] if key == "const" else _expect(schema, key, list, where)
            types = _types(schema, where)
            return choice(*(_constant(v) for v in values if not types or _type_of(v) & set(types)))
        members = _expect(schema, key, list, where)
        return choice(*(self.value(m, f"{where}/{key}/{i}", inside) for i, m in enumerate(members)))

    def reference(self, target: Any, where: str, inside: tuple[str, ...]) -> Expression:
        if not isinstance(target, str) or not target.startswith("#"):
            raise ValueError(f"JSON schema, {where}: $ref {target!r} leaves the schema; only #/... is followed")
        if inside.count(target) >= DEPTH:
            return choice()
        found = self.root
        for part in target[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise ValueError(f"JSON schema, {where}: $ref {target!r} leads nowhere")
            found = found[key]
        return self.value(found, target, (*inside, target))

    def typed(self, schema: Mapping[str, Any], where: str, inside: tuple[str, ...]) -> Expression:
        kinds: dict[str, Callable[[], Expression]] = {
            "object": lambda: self.object(schema, where, inside),
            "array": lambda: self.array(schema, where, inside),
            "string": lambda: _string(schema, where),
            "number": lambda: _number(schema, where),
            "integer": lambda: _integer(schema, where),
            "boolean": lambda: choice(literal(b"true"), literal(b"false")),
            "null": lambda: literal(b"null"),
        }
        names = _types(schema, where) or _implied(schema)
        for name in names:
            if name not in kinds:
                raise ValueError(unknown(f"JSON schema, {where}: type", name, kinds))
        return choice(*(kinds[name]() for name in names)) if names else anything(DEPTH)

    def object(self, schema: Mapping[str, Any], where: str, inside: tuple[str, ...]) -> Expression:
        properties = _expect(schema, "properties", Mapping, where)
        required = _names(schema, "required", where)
        if missing := set(required) - set(properties):
            raise ValueError(f"JSON schema, {where}: required {sorted(missing)} are not in properties")
        if not properties:
            extra = schema.get("additionalProperties", True)
            if extra is False:
                return literal(b"{}")
            item = sequence(_string({}, where), COLON, self.value(extra, f"{where}/additionalProperties", inside))
            return sequence(literal(b"{"), choice(EMPTY, Joined(item, COMMA)), literal(b"}"))
        items = []
        for name, inner in properties.items():
            value = self.value(inner, f"{where}/properties/{name}", inside)
            items.append((sequence(_constant(name), COLON, value), name in required))
        return sequence(literal(b"{"), Members(tuple(items), COMMA), literal(b"}"))

    def array(self, schema: Mapping[str, Any], where: str, inside: tuple[str, ...]) -> Expression:
        given = _expect(schema, "prefixItems", list, where)
        first = [self.value(inner, f"{where}/prefixItems/{i}", inside) for i, inner in enumerate(given)]
        least, most = _bounds(schema, "Items", where)
        least = max(least, len(first))
        if schema.get("items") is False:
            most = len(first)
        if most is not None and most < least:
            raise ValueError(f"JSON schema, {where}: at most {most} items, but at least {least}")
        if most == len(first):
            return _bracketed(first, EMPTY)
        item = self.value(schema.get("items", True), f"{where}/items", inside)
        first += [item] * (least - len(first))
        if first:
            more = repeat(sequence(COMMA, item), 0, None if most is None else most - len(first))
            return _bracketed(first, more)
        some = Joined(item, COMMA) if most is None else sequence(item, repeat(sequence(COMMA, item), 0, most - 1))
        return choice(literal(b"[]"), _bracketed([some], EMPTY))


def _types(schema: Mapping[str, Any], where: str) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else _names(schema, "type", where)


def _implied(schema: Mapping[str, Any]) -> list[str]:
    """The types that the keywords of a schema without one are about; none if it has no keywords."""
    about = {"string": _STRING, "array": _ARRAY, "object": _OBJECT, "integer": _INTEGER}
    return [name for name, keys in about.items() if any(key in schema for key in keys)]


def _type_of(value: Any) -> set[str]:
    if isinstance(value, bool) or value is None:
        return {"null" if value is None else "boolean"}
    if isinstance(value, (int, float)):
        return {"number", "integer"} if isinstance(value, int) or value.is_integer() else {"number"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}


def _expect(schema: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """The value of a keyword, empty if absent. Raises ValueError if it is of another kind."""
    value = schema.get(key, {} if kind is Mapping else kind())
    if not isinstance(value, kind):
        raise ValueError(f"JSON schema, {where}: {key} has a value of the wrong type, {value!r}")
    return value


def _names(schema: Mapping[str, Any], key: str, where: str) -> list[str]:
    """The strings that a keyword lists."""
    names: list[str] = _expect(schema, key, list, where)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"JSON schema, {where}: {key} lists something else than strings, {names!r}")
    return names


def _bounds(schema: Mapping[str, Any], what: str, where: str) -> tuple[int, int | None]:
    """minWHAT and maxWHAT."""
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    for bound in (least, 0 if most is None else most):
        if isinstance(bound, bool) or not isinstance(bound, int) or not 0 <= bound <= regex.MOST:
            raise ValueError(f"JSON schema, {where}: min{what} and max{what} are integers from 0 to {regex.MOST}")
    if most is not None and most < least:
        raise ValueError(f"JSON schema, {where}: max{what} is below min{what}")
    return least, most


def anything(depth: int) -> Expression:
    """Any JSON value with at most `depth` arrays and objects inside each other."""
    simple = choice(_string({}, "#"), _number({}, "#"), *(literal(word) for word in (b"true", b"false", b"null")))
    if depth == 0:
        return simple
    inner = anything(depth - 1)
    members = Joined(sequence(_string({}, "#"), COLON, inner), COMMA)
    objects = sequence(literal(b"{"), choice(EMPTY, members), literal(b"}"))
    arrays = sequence(literal(b"["), choice(EMPTY, Joined(inner, COMMA)), literal(b"]"))
    return choice(simple, objects, arrays)


def _bracketed(items: Sequence[Expression], rest: Expression) -> Expression:
    parts = [part for item in items for part in (COMMA, item)][1:]
    return sequence(literal(b"["), *parts, rest, literal(b"]"))


def _constant(value: Any) -> Expression:
    """A value written as `json.dumps` does. Raises ValueError for one that JSON in UTF-8 cannot write."""
    try:
        return literal(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise ValueError(f"JSON schema: {value!r} cannot be written as JSON in UTF-8: {error}") from error


def _characters(ranges: regex.Ranges) -> Expression:
    """One character of the ranges as it stands in a JSON string: `"`, a backslash and controls as escapes."""
    special = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)]
    plain = regex.negate([*regex.negate(ranges), *special])
    escapes = [
        json.dumps(chr(code)).encode()[1:-1]
        for low, high in special
        for code in range(low, high + 1)
        if any(a <= code <= b for a, b in ranges)
    ]
    return choice(*([regex.utf8(plain)] if plain else []), words(escapes))


def _string(schema: Mapping[str, Any], where: str) -> Expression:
    character = _characters([(0, regex.LAST)])
    least, most = _bounds(schema, "Length", where)
    inner = repeat(character, least, most)
    if "pattern" in schema:
        if "minLength" in schema or "maxLength" in schema:
            raise ValueError(f"JSON schema, {where}: pattern cannot be kept beside a length; use {{n,m}} in it")
        pattern = _expect(schema, "pattern", str, where)
        before, after = (EMPTY if anchored else inner for anchored in (pattern[:1] == "^", pattern[-1:] == "$"))
        inner = sequence(before, regex.parse(pattern, _characters), after)
    return sequence(literal(b'"'), inner, literal(b'"'))


def _number(schema: Mapping[str, Any], where: str) -> Expression:
    if any(key in schema for key in _INTEGER):
        raise ValueError(f"JSON schema, {where}: bounds are kept for integers only, not for numbers")
    return regex.parse(rf"-?(0|[1-9][0-9]{{0,{DIGITS - 1}}})(\.[0-9]{{1,{DIGITS}}})?([eE][+-]?[0-9]{{1,2}})?")


def _integer(schema: Mapping[str, Any], where: str) -> Expression:
    for key in _INTEGER:
        if key in schema and type(schema[key]) is not int:
            raise ValueError(f"JSON schema, {where}: {key} is {schema[key]!r}; only an integer can be kept")
    low = max(schema.get("minimum", -LIMIT), schema.get("exclusiveMinimum", -LIMIT - 1) + 1)
    high = min(schema.get("maximum", LIMIT), schema.get("exclusiveMaximum", LIMIT + 1) - 1)
    if not -LIMIT <= low <= high <= LIMIT:
        raise ValueError(f"JSON schema, {where}: integers from {low} to {high} are none, or have over {DIGITS} digits")
    parts = [_decimal(max(low, 0), high)] if high >= 0 else []
    if low < 0:
        parts.append(sequence(literal(b"-"), _decimal(max(-high, 1), -low)))
    return choice(*parts)


def _decimal(low: int, high: int) -> Expression:
    """The integers from `low` >= 0 to `high`, in decimal without leading zeros."""
    parts = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        parts.append(_same_length(str(first), str(min(high, 10**digits - 1))))
    return choice(*parts)


def _same_length(low: str, high: str) -> Expression:
    """Decimal strings between two of the same length."""
    if not low:
        return EMPTY
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return sequence(_digit(low[0], high[0]), *[_digit("0", "9")] * (len(low) - 1))
    if low[0] == high[0]:
        return sequence(literal(low[0].encode()), _same_length(low[1:], high[1:]))
    zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
    parts = [
        sequence(literal(low[0].encode()), _same_length(low[1:], nines)),
        sequence(literal(high[0].encode()), _same_length(zeros, high[1:])),
    ]
    if int(high[0]) - int(low[0]) > 1:
        between = _digit(str(int(low[0]) + 1), str(int(high[0]) - 1))
        parts.append(sequence(between, *[_digit("0", "9")] * (len(low) - 1)))
    return choice(*parts)


def _digit(low: str, high: str) -> Expression:
    return regex.utf8([(ord(low), ord(high))])
