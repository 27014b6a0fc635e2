"""Constraints: the automata accept what they should, lead to a word within any limit, and decode exactly."""

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.generation import ByteDrafter, constraints, generate, json_schema, stream
from mambabyte.generation.automaton import Automaton
from mambabyte.generation.regex import LAST, negate, utf8
from tests.generation.conftest import tiny_model

PATTERNS = [
    "",
    "abc",
    "a*b+c?",
    "(ab|a)(bc|c)?",
    "(?:a|b){2,3}",
    "a{2}b{1,}",
    "[a-c]+[^a-c]",
    r"[\w\-.]+@\w+\.(com|org)",
    r"\d{3}-\D\s\S\W",
    r"[]\]x]\\[é-ü⚡]?",
    ".é*[^é]",
    r"\x41\u00e9?(|b)c",
    "^(a|ab)(c|bcd)$",
    "((a*)*b)*",
]
ALPHABET = st.sampled_from(list("abcdx@.-_0 9\n]\\éüö⚡😀AZm,com"))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_regular_expression_is_pythons(pattern):
    automaton, expected = constraints.regex(pattern), re.compile(pattern, re.ASCII)

    @settings(max_examples=60, deadline=None)
    @given(st.one_of(st.text(ALPHABET, max_size=9), st.from_regex(expected, fullmatch=True)))
    def check(text):
        encodable = not any(0xD800 <= ord(c) < 0xE000 for c in text)
        if encodable:
            assert automaton.matches(text.encode()) == bool(expected.fullmatch(text))

    check()


@given(
    st.one_of(
        st.binary(max_size=8), st.text(max_size=4).map(str.encode), st.binary(max_size=3).map(lambda b: b"\xf0\x9f" + b)
    )
)
def test_utf8_is_what_python_decodes(data):
    try:
        data.decode()
        decodes = True
    except UnicodeDecodeError:
        decodes = False
    assert UTF8.matches(data) == decodes


UTF8 = constraints.utf8()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, LAST), st.integers(0, LAST)).map(sorted), max_size=3),
    st.characters(codec="utf-8"),
)
def test_a_class_of_characters_is_its_ranges(ranges, character):
    inside = any(low <= ord(character) <= high for low, high in ranges)
    for expression, expected in ((ranges, inside), (negate([tuple(r) for r in ranges]), not inside)):
        try:
            automaton = Automaton(utf8(expression))
        except ValueError:
            assert not expected
            continue
        assert automaton.matches(character.encode()) == expected


SCHEMAS = {
    "flat": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"type": "integer", "minimum": -3, "maximum": 120},
        },
        "required": ["age"],
    },
    "optional": {"properties": {k: {"type": "boolean"} for k in "abcd"}, "required": ["c"]},
    "none required": {"properties": {k: {"const": k} for k in "ab"}},
    "array": {"type": "array", "items": {"enum": [1, "x", None, [2]]}, "minItems": 1, "maxItems": 3},
    "tuple": {"prefixItems": [{"type": "number"}, {"type": "null"}], "items": False},
    "union": {
        "anyOf": [{"type": "string", "pattern": '^["a]{2}\\d$'}, {"type": ["integer", "null"], "exclusiveMinimum": 9}]
    },
    "reference": {
        "$defs": {"tree": {"type": "object", "properties": {"v": {"type": "integer"}, "l": {"$ref": "#/$defs/tree"}}}},
        "$ref": "#/$defs/tree",
    },
    "map": {"type": "object", "additionalProperties": {"type": "number"}},
    "anything": True,
}


KEYWORDS = [*json_schema._KNOWN, "title"]


def obeys(value, schema, root):
    """JSON Schema validation for the keywords above."""
    if schema is True:
        return True
    if "$ref" in schema:
        return obeys(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in schema:
        return any(obeys(value, s, root) for s in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    kinds["boolean"] = bool
    names = schema.get("type", list(kinds))
    if not any(isinstance(value, kinds[n]) for n in ([names] if isinstance(names, str) else names)):
        return False
    checks = [
        not isinstance(value, dict) or set(schema.get("required", ())) <= set(value),
        not isinstance(value, dict)
        or all(
            obeys(v, schema.get("properties", {}).get(k, schema.get("additionalProperties", True)), root)
            for k, v in value.items()
        ),
        not isinstance(value, list) or all(obeys(v, schema.get("items") or True, root) for v in value),
        not isinstance(value, list) or schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99),
        not isinstance(value, str) or len(value) <= schema.get("maxLength", 10**9),
        not isinstance(value, str) or re.search(schema.get("pattern", ""), value),
        not isinstance(value, int) or schema.get("minimum", -(10**20)) <= value <= schema.get("maximum", 10**20),
        not isinstance(value, int) or value > schema.get("exclusiveMinimum", -(10**20)),
    ]
    return all(checks)


def walk(rule, limit, rng):
    """A random word of at most `limit` bytes."""
    state, word = rule.start, b""
    while len(word) < limit and not rule.ended(state):
        byte = rng.choice(rule.allowed(state, limit - len(word)).nonzero()[0].tolist())
        word, state = word + bytes([byte]), rule.after(state, byte)
    assert rule.shortest(state) == 0
    return word


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_walk_through_a_schema_is_json_that_it_accepts(name):
    schema = SCHEMAS[name]
    rule, rng = constraints.json_schema(schema), random.Random(0)
    shortest = rule.shortest(rule.start)
    for limit in [*range(shortest, shortest + 25), 80]:
        word = walk(rule, limit, rng)
        assert obeys(json.loads(word), schema, schema), word
    assert rule.matches(word)


def test_a_schema_accepts_what_json_writes():
    rule = constraints.json_schema(SCHEMAS["flat"])
    for value in ({"age": 7}, {"name": 'é\n"', "age": -3}, {"age": 120}):
        for separators in ((",", ":"), (", ", ": ")):
            assert rule.matches(json.dumps(value, separators=separators, ensure_ascii=False).encode())
    for text in (
        b'{"age": 121}',
        b'{"age": -4}',
        b'{"name": "abcdef", "age": 1}',
        b'{"name": "a"}',
        b'{"age": 07}',
        b"{}",
    ):
        assert not rule.matches(text)


@settings(deadline=None, max_examples=60)
@given(st.integers(-200, 200), st.integers(-200, 200), st.integers(-250, 250))
def test_integer_bounds_are_kept(low, high, value):
    if low > high:
        low, high = high, low
    rule = constraints.json_schema({"type": "integer", "minimum": low, "maximum": high})
    assert rule.matches(str(value).encode()) == (low <= value <= high)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.sampled_from(["", "string", "#", "^a", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=3))
def test_every_schema_is_kept_or_refused_in_a_sentence(schema):
    try:
        rule = constraints.json_schema(schema)
    except ValueError as error:
        assert re.match("JSON schema|the (constraint|regular expression) ", str(error))  # noqa: PT017
    else:
        json.loads(walk(rule, rule.shortest(rule.start), random.Random(0)))


def test_a_property_is_laid_out_once_whether_or_not_others_come_before():
    few, many = (constraints.json_schema({"properties": dict.fromkeys(map(str, range(n)), True)}) for n in (3, 12))
    assert len(many._nfa.steps) < 5 * len(few._nfa.steps)
    assert many.matches(b'{"2":[],"11": {"a":1}}')
    assert not many.matches(b'{"11":1,"2":1}')


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (constraints.regex, "((a{100}){100}){100}"),
        (constraints.regex, "((((){1000}){1000}){1000}){1000}"),
        (constraints.json_schema, {"items": {"maxLength": 900}, "maxItems": 900}),
    ],
    ids=["much", "much of nothing", "JSON"],
)
def test_what_would_not_fit_into_memory_is_refused(build, given, monkeypatch):
    monkeypatch.setattr("mambabyte.generation.automaton.MOST_PARTS", 20_000)
    with pytest.raises(ValueError, match="over 20,000 parts, repetitions multiplied; allow fewer"):
        build(given)


def test_references_that_multiply_are_refused():
    members = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in "abcd"}}
    with pytest.raises(ValueError, match=r"over 16,384 values, references followed; use fewer"):
        constraints.json_schema({"$defs": dict.fromkeys("abcd", members), "$ref": "#/$defs/a"})


@pytest.mark.parametrize("pattern", ["[a-f]{3}(x|yz)*", "é+⚡", "(ab){1,9}c"])
def test_every_walk_ends_in_a_word_within_the_limit(pattern):
    rule, rng = constraints.regex(pattern), random.Random(1)
    shortest = rule.shortest(rule.start)
    for limit in range(shortest, shortest + 12):
        assert re.fullmatch(pattern, walk(rule, limit, rng).decode())


@pytest.mark.parametrize(
    "rule",
    [UTF8, constraints.regex(r"\d{2}:\d{2}( [a-z]+)*"), constraints.json_schema(SCHEMAS["flat"])],
    ids=["utf8", "regex", "schema"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constrained_output_is_a_word_and_the_same_with_any_drafter(model, rule, temperature):
    options = {"max_bytes": 25, "temperature": temperature, "seed": 3, "constraint": rule}
    prompts = [b"a", b"xyxyxy", b"\xff"]
    plain = generate(model, prompts, **options)
    assert all(rule.matches(out) for out in plain)
    for drafter in ("lookup", ByteDrafter(tiny_model(seed=8)), ByteDrafter(model)):
        assert generate(model, prompts, drafter=drafter, **options) == plain


def test_the_output_ends_when_the_word_is_complete(model):
    pieces = stream(model, b"x", constraint=constraints.regex("(yes|no)!"), max_bytes=50)
    assert b"".join(pieces) in (b"yes!", b"no!")
    assert pieces.end == "complete"


def test_the_distribution_is_the_models_among_the_allowed_bytes(model):
    """One byte of three: frequencies over seeds against the renormalised softmax."""
    rule = constraints.regex("[abz]")
    context = stream(model, b"q", max_bytes=0).context
    logits = context.logits[0, [97, 98, 122]].double().numpy()
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    draws = 400
    out = generate(model, b"", state=context, constraint=rule, max_bytes=1, seed=0)
    assert out in (b"a", b"b", b"z")
    outs = generate(model, [b""] * draws, state=context, constraint=rule, max_bytes=1, seed=list(range(draws)))
    observed = np.array([outs.count(b) for b in (b"a", b"b", b"z")]) / draws
    assert np.abs(observed - expected).max() < 4 * np.sqrt(0.25 / draws)


def test_a_limit_too_small_for_any_word_is_a_sentence(model):
    with pytest.raises(ValueError, match="at least 5 bytes"):
        generate(model, b"x", constraint=constraints.regex("hello( world)?"), max_bytes=4)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a(b", "not closed"),
        ("a)b", "unmatched"),
        ("[a", "too early"),
        ("a{3,2}", "out of order"),
        ("a{9999}", "more than"),
        ("a{x}", "begins no"),
        ("a*?", "lazy"),
        ("(?=a)", "(?:...)"),
        (r"(a)\1", "not known"),
        (r"a\b", "not known"),
        ("*a", "no meaning"),
        ("a^b", "no meaning"),
        ("[z-a]", "backwards"),
        (r"\x4", "hexadecimal"),
        ("a\\", "too early"),
        ("a\udcff", "no UTF-8, which no output has, at character 2"),
        ("(" * 5000 + ")" * 5000, "inside each other"),
    ],
    ids=lambda value: value[:20],
)
def test_a_wrong_pattern_is_a_sentence(pattern, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        constraints.regex(pattern)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "not JSON"),
        ("3", "expected an object"),
        ({"typ": "string"}, "did you mean 'type'"),
        ({"type": "text"}, "'text' does not exist"),
        ({"type": 3}, "wrong type"),
        ({"type": "number", "minimum": 1}, "integers only"),
        ({"$ref": "http://elsewhere"}, "leaves the schema"),
        ({"$ref": "#/$defs/nothing"}, "leads nowhere"),
        ({"$ref": "#"}, "no text"),
        ({"anyOf": [True], "minLength": 3}, "cannot be kept beside"),
        ({"minLength": 3, "maxLength": 2}, "below"),
        ({"minItems": -1}, "from 0 to"),
        ({"pattern": "("}, "too early|not closed"),
        ({"required": ["a"]}, "not in properties"),
        ({"properties": 3}, "wrong type"),
        ({"minimum": 5, "maximum": 4}, "are none"),
        ({"enum": []}, "no text"),
        (False, "expected an object"),
        ({"required": [{}]}, "required lists something else than strings"),
        ({"type": [{}]}, "type lists something else than strings"),
        ({"minimum": "1"}, "minimum is '1'; only an integer"),
        ({"exclusiveMaximum": None}, "exclusiveMaximum is None; only an integer"),
        ({"maximum": True}, "maximum is True; only an integer"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": float("inf"), "type": "number"}, "cannot be written as JSON"),
        ({"properties": {"\ud800": True}}, "cannot be written as JSON"),
        ('{"items": ' * 5000 + "{}" + "}" * 5000, "inside each other"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_schema_is_a_sentence(schema, words):
    with pytest.raises(ValueError, match=words):
        constraints.json_schema(schema)
