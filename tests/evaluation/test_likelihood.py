import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.evaluation import likelihood
from mambabyte.evaluation.likelihood import log_likelihoods
from mambabyte.evaluation.plan import Plan
from tests.evaluation.examples import bits_of, small_model

MODEL = small_model()
texts = st.binary(max_size=12)


def alone(context: bytes, continuation: bytes) -> tuple[float, bool]:
    """One pair in one forward pass."""
    context = context or b"\n"
    logits, _ = MODEL(torch.tensor([list(context + continuation)]))
    predictions = torch.log_softmax(logits[0, len(context) - 1 : -1], dim=-1)
    targets = torch.tensor(list(continuation), dtype=torch.int64)
    return (
        predictions.gather(1, targets[:, None]).sum().item(),
        bool((predictions.argmax(dim=-1) == targets).all()),
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=8), st.integers(1, 5), st.integers(1, 40))
def test_a_pair_gives_what_it_gives_alone(pairs: list[tuple[bytes, bytes]], rows: int, positions: int) -> None:
    usual, likelihood.POSITIONS = likelihood.POSITIONS, positions
    try:
        found = log_likelihoods(MODEL, pairs, rows=rows)
    finally:
        likelihood.POSITIONS = usual
    for pair, score in zip(pairs, found, strict=True):
        log_probability, is_greedy = alone(*pair)
        assert score.log_probability == pytest.approx(log_probability, rel=1e-9, abs=1e-9)
        assert score.is_greedy == is_greedy


def test_the_choices_of_a_question_share_its_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    hidden = type(MODEL).hidden

    def counting(self, ids, *args, **kwargs):
        nonlocal read
        read += ids.numel()
        return hidden(self, ids, *args, **kwargs)

    monkeypatch.setattr(type(MODEL), "hidden", counting)
    log_likelihoods(MODEL, [(b"a long question" * 10, choice) for choice in (b" yes", b" no", b" maybe")])
    assert read == 150 + 3 * len(b" maybe")


def test_the_most_likely_bytes_are_greedy() -> None:
    text = b"prompt"
    answer = b""
    for _ in range(4):
        logits, _ = MODEL(torch.tensor([list(text + answer)]))
        answer += bytes([int(logits[0, -1].argmax())])
    other = answer[:-1] + bytes([answer[-1] ^ 1])
    greedy, not_greedy = log_likelihoods(MODEL, [(text, answer), (text, other)])
    assert greedy.is_greedy
    assert not not_greedy.is_greedy
    assert greedy.log_probability > not_greedy.log_probability


def test_a_document_after_nothing_is_what_evaluate_scores() -> None:
    document = bytes(range(256)) * 3
    bits = bits_of(MODEL, [document], Plan())[0].sum()
    (score,) = log_likelihoods(MODEL, [(b"", document)])
    assert score.log_probability == pytest.approx(-bits * math.log(2), rel=1e-5)


def test_no_bytes_are_certain_and_no_pairs_are_no_work() -> None:
    (score,) = log_likelihoods(MODEL, [(b"context", b"")])
    assert (score.log_probability, score.is_greedy) == (0, True)
    assert log_likelihoods(MODEL, []) == []
