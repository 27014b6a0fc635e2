"""Rows of one decoder are each as if alone, whatever the others are."""

from mambabyte.generation import Cursor, Decoder, generate, open_engine
from mambabyte.generation.api import read_prompt
from mambabyte.generation.constraints import utf8
from mambabyte.generation.decoder import Draft
from mambabyte.generation.drafters import LookupDrafter
from mambabyte.generation.sampling import Sampler, Sampling
from mambabyte.generation.stops import StopMatcher

ROWS = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.0, "seed": 4, "stop": b"q"},
    {"top_k": 5, "top_p": 0.9, "seed": 5},
    {"repetition_penalty": 1.5, "seed": 6},
    {"constraint": utf8(), "seed": 7},
    {"temperature": 1.0, "seed": 8, "drafter": LookupDrafter(shortest=1)},
    {"temperature": 0.0, "drafter": LookupDrafter(shortest=1), "top_beta": 1},
]


def join(decoder, prompt, *, seed=0, stop=None, constraint=None, drafter=None, top_beta=None, **sampling):
    sampler = Sampler(Sampling(**sampling), seed)
    state = constraint.start if constraint else 0
    cursor = Cursor(
        sampler, 40, recent=prompt[-sampler.window :] if sampler.window else b"", rule=constraint, state=state
    )
    draft = Draft(drafter.begin(prompt), drafter.cost, top_beta) if drafter else None
    context = read_prompt(decoder.engine, prompt, None)
    return decoder.join(context, cursor, stops=StopMatcher([stop] if stop else ()), draft=draft)


def test_rows_of_different_settings_are_each_as_if_alone(model):
    alone = [generate(model, b"abcabc", max_bytes=40, **row) for row in ROWS]
    with Decoder(open_engine(model)) as decoder:
        rows = [join(decoder, b"abcabc", **row) for row in ROWS]
        while any(row.end is None for row in rows):
            decoder.step()
        assert [bytes(row.output) for row in rows] == alone
    assert not decoder.rows
