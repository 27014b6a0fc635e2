"""Stop strings against a search of the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from mambabyte.generation.stops import StopMatcher

TEXT = st.binary(max_size=40).map(lambda b: bytes(97 + x % 3 for x in b))
STOPS = st.lists(st.binary(min_size=1, max_size=4).map(lambda b: bytes(97 + x % 3 for x in b)), max_size=3)


def before_the_first_stop(text: bytes, stops: list[bytes]) -> bytes:
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(TEXT, STOPS)
def test_output_ends_before_the_first_stop(text, stops):
    matcher, out = StopMatcher(stops), b""
    for byte in text:
        out += matcher.push(byte)
        if matcher.found is not None:
            break
    assert out + matcher.finish() == before_the_first_stop(text, stops)


@given(TEXT, STOPS)
def test_nothing_is_emitted_that_a_stop_may_still_claim_and_nothing_else_is_held(text, stops):
    matcher, out = StopMatcher(stops), b""
    for i, byte in enumerate(text):
        out += matcher.push(byte)
        if matcher.found is not None:
            return
        seen = text[: i + 1]
        claimed = max((n for s in stops for n in range(len(s)) if seen.endswith(s[:n])), default=0)
        assert out == seen[: len(seen) - claimed]
