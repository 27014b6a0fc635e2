import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.data import Corpus
from mambabyte.evaluation.plan import Plan
from mambabyte.evaluation.scoring import score
from mambabyte.models import ByteLM
from tests.evaluation.examples import bits_of, small_model

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64 throughout: only the order of sums differs

MODEL = small_model()
documents = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5)
plans = st.sampled_from(
    [
        Plan(),
        Plan(mode="window", context=1),
        Plan(mode="window", context=7),
        Plan(mode="sliding", context=8),
        Plan(mode="sliding", context=9, stride=2),
        Plan(mode="sliding", context=5, stride=5),
    ]
)


def step_bits(model: ByteLM, document: bytes, plan: Plan) -> np.ndarray:
    """Byte by byte with `step_`, each run from the zero state, and its own softmax."""
    bits = np.full(len(document), np.nan)
    stream = b"\n" + document
    for run in plan.runs([(0, len(document))]):
        state = model.init_state(1)
        for position in range(run.start, run.stop):
            logits = model.step_(torch.tensor([stream[position]]), state)[0].double().numpy()
            exponentials = np.exp(logits - logits.max())
            if position >= run.scored:
                bits[position] = -math.log2(exponentials[stream[position + 1]] / exponentials.sum())
    return bits


@settings(max_examples=25, deadline=None)
@given(documents, plans)
def test_bits_are_those_of_a_computation_byte_by_byte(documents: list[bytes], plan: Plan) -> None:
    for document, bits in zip(documents, bits_of(MODEL, documents, plan), strict=True):
        np.testing.assert_allclose(bits, step_bits(MODEL, document, plan), **CLOSE)


@settings(max_examples=25, deadline=None)
@given(documents, plans, st.integers(1, 6), st.integers(1, 50))
def test_neither_batch_nor_chunk_changes_a_byte(documents: list[bytes], plan: Plan, batch: int, chunk: int) -> None:
    whole = bits_of(MODEL, documents, plan)
    for one, other in zip(whole, bits_of(MODEL, documents, plan, batch=batch, chunk=chunk), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


@settings(max_examples=15, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_later_byte_changes_nothing_before_it(document: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(document) - 1))
    changed = document[:at] + bytes([document[at] ^ 0x55]) + document[at + 1 :]
    plan = data.draw(plans)
    (bits,), (others,) = bits_of(MODEL, [document], plan), bits_of(MODEL, [changed], plan)
    np.testing.assert_array_equal(bits[:at], others[:at])
    assert bits[at] != others[at]


def test_a_document_is_scored_as_if_it_were_alone() -> None:
    documents = [b"first " * 7, b"\x00\xff" * 9, b"x", b"last\r\n" * 3]
    together = bits_of(MODEL, documents, Plan(), batch=1)
    for document, bits in zip(documents, together, strict=True):
        np.testing.assert_allclose(bits, bits_of(MODEL, [document], Plan())[0], **CLOSE)


def test_the_first_byte_comes_after_one_newline() -> None:
    logits, _ = MODEL(torch.tensor([[0x0A]]))
    expected = -torch.log_softmax(logits[0, 0], -1) / math.log(2)
    bits = [bits_of(MODEL, [bytes([byte])], Plan())[0][0] for byte in range(256)]
    np.testing.assert_allclose(bits, expected.detach().numpy(), **CLOSE)
    assert sum(2.0**-b for b in bits) == pytest.approx(1)


def test_a_later_window_begins_after_one_byte() -> None:
    document = b"abcdefgh"
    bits = bits_of(MODEL, [document], Plan(mode="window", context=4))[0]
    logits, _ = MODEL(torch.tensor([list(document[3:7])]))
    expected = -torch.log_softmax(logits[0], -1) / math.log(2)
    np.testing.assert_allclose(bits[4:], [expected[i, byte].item() for i, byte in enumerate(document[4:])], **CLOSE)


def test_float32_and_bfloat16_models_are_scored_in_float32() -> None:
    document = bytes(range(0, 256, 3))
    exact = bits_of(MODEL, [document], Plan())[0]
    model = small_model().float()
    np.testing.assert_allclose(bits_of(model, [document], Plan())[0], exact, rtol=1e-3, atol=1e-3)
    model.compute_dtype = torch.bfloat16
    coarse = bits_of(model, [document], Plan())[0]
    assert abs(coarse.mean() / exact.mean() - 1) < 0.05
    assert (coarse != coarse.astype(np.float16)).any()


def test_a_certain_byte_costs_nothing_and_an_impossible_one_a_finite_price() -> None:
    model = small_model().float()
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias = torch.nn.Parameter(torch.ones(model.config.d_model))
        model.head.weight.zero_()
        model.head.weight[ord("a")] = 25.0  # logit 300 for "a", 0 for every other byte
    bits = bits_of(model, [b"aab"], Plan())[0]
    np.testing.assert_allclose(bits, [0, 0, 300 / math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_a_sentence(value: float) -> None:
    model = small_model()
    with torch.no_grad():
        model.embedding.weight[ord("!")] = value
    with pytest.raises(ValueError, match=r"the model gives byte 3 of .*000 no finite number of bits"):
        bits_of(model, [b"ok!?"], Plan())


@pytest.mark.parametrize("options", [{"batch": 0}, {"chunk": 0}, {"batch": -1}])
def test_batch_and_chunk_are_at_least_one(options: dict) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        bits_of(MODEL, [b"x"], Plan(), **options)


def test_a_model_in_training_is_left_in_training() -> None:
    model = small_model().train()
    bits_of(model, [b"abc"], Plan())
    assert model.training
    assert all(not parameter.grad for parameter in model.parameters())


@pytest.mark.parametrize("plan", [Plan(), Plan(mode="window"), Plan(mode="sliding")])
def test_a_file_of_any_size_is_read_piece_by_piece(tmp_path: Path, plan: Plan) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 << 30)
    pieces = score(MODEL, Corpus.open([tmp_path]), plan, batch=1, chunk=8)
    assert [(piece.start, len(piece.bits)) for piece in itertools.islice(pieces, 2)] == [(0, 8), (8, 8)]
    pieces.close()
