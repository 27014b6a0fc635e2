"""`generate` and `stream`: the law that a row is what it would be alone, limits, stops, states and errors."""

import pytest
import torch

from mambabyte.generation import Cursor, Decoder, generate, open_engine, stream
from mambabyte.generation import engine as engines
from mambabyte.generation.sampling import Sampler, Sampling
from mambabyte.models.context import Context
from tests.generation.conftest import tiny_model

PROMPTS = [b"", b"a", b"def main(", b"\xff\x00\xfe", b"x" * 300, "naïve ⚡".encode()]
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
    {"min_p": 0.05, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("max_rows", [1, 2, 64])
def test_a_prompt_in_a_batch_gives_what_it_gives_alone(model, settings, max_rows):
    together = generate(model, PROMPTS, max_bytes=24, seed=11, stop=[b"\n", b"ab"], max_rows=max_rows, **settings)
    alone = [generate(model, p, max_bytes=24, seed=11, stop=[b"\n", b"ab"], **settings) for p in PROMPTS]
    assert together == alone


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_stream_is_generate_in_pieces(model, settings):
    whole = generate(model, b"abc", max_bytes=40, seed=3, **settings)
    pieces = stream(model, b"abc", max_bytes=40, seed=3, **settings)
    assert pieces.end is None
    listed = list(pieces)
    assert all(listed)
    assert b"".join(listed) == whole
    assert pieces.end == "limit"
    assert len(whole) == 40


def test_rows_join_and_leave_between_steps(model):
    """A row that starts late, or outlives its neighbours, gives the same bytes."""
    decoder = Decoder(open_engine(model))
    sampling, expected, rows = Sampling(), [], []
    for i, prompt in enumerate([b"one", b"two!", b"three"]):
        context = engines.prefill(model, prompt)
        rows.append(decoder.join(context, Cursor(Sampler(sampling, i), left=10 + 3 * i)))
        expected.append(generate(model, prompt, max_bytes=10 + 3 * i, seed=i))
        for _ in range(4):
            decoder.step()
    decoder.leave(rows[0])
    while any(row.end is None for row in decoder.rows):
        decoder.step()
    assert [bytes(row.output) for row in rows] == expected


def test_greedy_is_the_argmax_of_the_whole_forward(model):
    prompt = b"some prompt"
    out = generate(model, prompt, max_bytes=30, temperature=0.0)
    logits, _ = model(torch.tensor([list(prompt + out)]))
    margin = logits.topk(2).values.diff().abs().min()
    assert margin > 1e-3, "the test needs a model without near ties"
    assert bytes(logits.argmax(-1)[0, len(prompt) - 1 : -1].tolist()) == out


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_prefill_in_chunks_is_prefill_at_once(model, length, monkeypatch):
    prompt = bytes(range(65, 91)) * 8
    whole = engines.prefill(model, prompt[:length])
    monkeypatch.setattr(engines, "PREFILL_CHUNK", 64)
    chunked = engines.prefill(model, prompt[:length])
    for (name, a), (_, b) in zip(whole.named_tensors(), chunked.named_tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_an_empty_prompt_follows_a_newline(model):
    assert generate(model, b"", max_bytes=20, seed=1) == generate(model, b"\n", max_bytes=20, seed=1)


def test_a_prompt_may_be_text_or_escaped_bytes(model):
    expected = generate(model, b"\xc3\xa9\xff", max_bytes=8, seed=2)
    assert generate(model, "é\udcff", max_bytes=8, seed=2) == expected
    assert generate(model, bytearray(b"\xc3\xa9\xff"), max_bytes=8, seed=2) == expected
    with pytest.raises(ValueError, match="lone surrogate"):
        generate(model, "\ud800")


def test_limit_zero_gives_nothing_and_its_context(model):
    assert generate(model, [b"ab", b""], max_bytes=0) == [b"", b""]
    pieces = stream(model, b"ab", max_bytes=0)
    assert list(pieces) == []
    assert pieces.end == "limit"
    after = generate(model, b"", state=pieces.context, max_bytes=9, seed=4)
    assert after == generate(model, b"ab", max_bytes=9, seed=4)


def test_stop_strings_end_the_output_before_them(model):
    free = generate(model, b"abc", max_bytes=60, temperature=0.0)
    stop = free[20:23]
    first = free.index(stop)
    assert generate(model, b"abc", max_bytes=60, temperature=0.0, stop=stop) == free[:first]
    pieces = stream(model, b"abc", max_bytes=60, temperature=0.0, stop=[b"\x00never\x00", stop])
    assert b"".join(pieces) == free[:first]
    assert pieces.end == "stop"


def test_a_limit_inside_a_stop_string_gives_its_beginning(model):
    free = generate(model, b"abc", max_bytes=20, temperature=0.0)
    assert generate(model, b"abc", max_bytes=20, temperature=0.0, stop=free[-2:] + b"\x00\x01\x02") == free


@pytest.mark.parametrize("cut", [1, 7, 39])
def test_a_context_continues_as_if_there_had_been_no_break(model, cut):
    whole = generate(model, b"abc", max_bytes=40, temperature=0.0)
    pieces = stream(model, b"abc", max_bytes=cut, temperature=0.0)
    head = b"".join(pieces)
    assert isinstance(pieces.context, Context)
    assert head + generate(model, b"", state=pieces.context, max_bytes=40 - cut, temperature=0.0) == whole


def test_the_context_of_a_stopped_or_abandoned_stream_has_read_what_was_given(model):
    whole = generate(model, b"abc", max_bytes=60, temperature=0.0)
    stopped = stream(model, b"abc", max_bytes=60, temperature=0.0, stop=whole[20:23])
    given = b"".join(stopped)
    rest = generate(model, b"", state=stopped.context, max_bytes=60 - len(given), temperature=0.0)
    assert given + rest == whole
    abandoned = stream(model, b"abc", max_bytes=60, temperature=0.0)
    given = next(abandoned) + next(abandoned)
    rest = generate(model, b"", state=abandoned.context, max_bytes=60 - len(given), temperature=0.0)
    assert given + rest == whole
    assert given + b"".join(abandoned) == whole


def test_a_cancelled_stream_leaves_the_engine(model):
    engine = open_engine(model)
    pieces = stream(model, b"abc", max_bytes=60, seed=1, engine=engine, drafter="lookup")
    first = next(pieces)
    pieces.close()
    pieces.close()
    assert list(pieces) == []
    assert pieces.end == "cancelled"
    with pytest.raises(ValueError, match="take the context before closing it"):
        _ = pieces.context
    assert generate(model, b"abc", max_bytes=60, seed=1, engine=engine).startswith(first)


@pytest.mark.parametrize(("drafter", "words"), [("lokup", "'lokup' is not known"), (3, "drafter is a int")])
def test_what_is_no_drafter_is_named(model, drafter, words):
    with pytest.raises(ValueError, match=f"{words}; give 'lookup', a model or a Drafter"):
        generate(model, b"abc", max_bytes=4, drafter=drafter)


def test_a_shared_state_serves_many_prompts_and_is_left_as_it_was(model):
    _, state = model(torch.tensor([list(b"a long document")]))
    before = state.clone()
    got = generate(model, [b" one", b" two"], state=state, max_bytes=12, seed=5)
    assert got == [generate(model, b"a long document" + p, max_bytes=12, seed=5) for p in [b" one", b" two"]]
    for (_, a), (_, b) in zip(state.named_tensors(), before.named_tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_state_row_for_each_prompt(model):
    _, state = model(torch.tensor([list(b"first"), list(b"other")]))
    got = generate(model, [b"1", b"2"], state=state, max_bytes=12, seed=[5, 6])
    assert got == [generate(model, b"first1", max_bytes=12, seed=5), generate(model, b"other2", max_bytes=12, seed=6)]


def test_equal_prompts_with_their_own_seeds_differ(model):
    a, b, c = generate(model, [b"q"] * 3, max_bytes=30, seed=[1, 2, 1])
    assert a == c != b
    assert len(set(generate(model, [b"q"] * 8, max_bytes=30))) > 1


def test_ids_that_are_not_bytes_are_never_emitted():
    model = tiny_model(vocab_size=300)
    with torch.no_grad():
        model.head.weight[256:].mul_(50)
    assert len(generate(model, [b"a", b"b"], max_bytes=50, seed=0)[0]) == 50
    assert len(generate(model, b"a", max_bytes=50, temperature=0.0)) == 50


def test_nothing_is_recorded_for_autograd_and_states_can_be_trained_from(model):
    pieces = stream(model, b"abc", max_bytes=3, seed=0)
    for context in (pieces.context, next(pieces) and pieces.context):
        assert not any(t.requires_grad or t.is_inference() for _, t in context.named_tensors())


def test_damaged_weights_are_a_sentence():
    model = tiny_model()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        generate(model, b"abc")


def test_an_engine_is_empty_after_use(model):
    engine = open_engine(model)
    first = generate(model, [b"a", b"b"], max_bytes=5, seed=1, engine=engine)
    assert generate(model, [b"a", b"b"], max_bytes=5, seed=1, engine=engine) == first
    row = engine.join(model.init_state())
    engine.leave(row)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_bytes": -1}, "max_bytes must be"),
        ({"max_bytes": 2.5}, "max_bytes must be"),
        ({"temperature": -0.5}, "temperature must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": [1, 2]}, "2 numbers for 1 prompts"),
        ({"stop": [b""]}, "empty string"),
        ({"stop": [3]}, "stop must be bytes or str"),
        ({"max_rows": 0}, "max_rows must be"),
    ],
)
def test_a_bad_option_is_a_sentence(model, options, words):
    with pytest.raises(ValueError, match=words):
        generate(model, b"abc", **options)


def test_a_state_that_cannot_serve_is_a_sentence(model):
    _, state = model(torch.tensor([[1], [2]]))
    with pytest.raises(ValueError, match="2 rows for 3 prompts"):
        generate(model, [b"a", b"b", b"c"], state=state)
    with pytest.raises(ValueError, match="at least one byte"):
        generate(model, b"", state=state.rows([0]))
    with pytest.raises(ValueError, match="prompt must be bytes or str"):
        generate(model, [b"a", 3])
