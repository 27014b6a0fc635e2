"""A drafter is trained as a byte model is: it resumes without a trace, and its figures are in bytes."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import mambabyte as mb
from mambabyte.data import Corpus, Subwords, SubwordWindows, Windows
from mambabyte.evaluation import evaluator
from mambabyte.models import SubwordLM
from mambabyte.training import train
from tests.training.small import At, config, corpus, curve
from tests.training.test_train import weights

SUBWORDS = {"tokenizer": 300, "context": 60}


def test_learns_a_vocabulary_and_a_model_of_it(tmp_path: Path) -> None:
    asked = config(tmp_path, steps=60, log_every=20, learning_rate=2e-2, clip=1.0, **SUBWORDS)
    result = train(asked, evaluators=[evaluator(asked.data)])
    drafter = mb.load_any(result.out)
    assert isinstance(drafter, SubwordLM)
    assert drafter.model.config.vocab_size == len(drafter.subwords) <= 300
    assert max(map(len, drafter.subwords.pieces)) > 4
    assert drafter.model.trained_dtype == torch.float32
    held_out = result.figures["bits_per_byte"]
    losses = [record["bits_per_byte"] for record in curve(result.out) if record["event"] == "train"]
    assert losses == sorted(losses, reverse=True)
    assert held_out == pytest.approx(losses[-1], abs=0.3), "the evaluation and the loss are in the same units"
    assert result.bytes <= 60 * 4 * 60
    again = mb.evaluate(drafter, asked.data, xz=False)
    assert again.bits_per_byte == pytest.approx(held_out, rel=1e-6)


def test_the_recipe_is_that_of_the_subwords_that_were_learnt(tmp_path: Path) -> None:
    """Four documents hold a few hundred subwords, whatever is asked for: no run is tuned for a larger model."""

    def recipe(asked: int, out: str, steps: int = 1) -> dict[str, object]:
        choices = {"batch": None, "context": None, "micro_batch": None, "learning_rate": None}
        run = train(config(tmp_path, out, steps=steps, tokenizer=asked, **choices)).out
        saved = json.loads((run / "train.json").read_text())
        return {name: saved[name] for name in choices}

    learnt = len(Subwords.of(Corpus.open((corpus(tmp_path / "data"),)), 1 << 20))
    assert learnt < 1000
    assert recipe(1 << 20, "more") == recipe(learnt, "as-many") == recipe(1 << 20, "more", steps=2)


def test_the_loss_is_the_price_of_the_bytes_that_are_spelt(tmp_path: Path) -> None:
    asked = config(tmp_path, steps=1, log_every=1, learning_rate=1e-9, **SUBWORDS)
    result = train(asked)
    drafter = mb.load_any(result.out)
    assert isinstance(drafter, SubwordLM)
    windows = Windows(Corpus.open(asked.data), context=60, batch=4, seed=0)
    batch = SubwordWindows(windows, drafter.subwords).batch(0)
    with torch.no_grad():
        logits, _ = drafter.model(batch.inputs, resets=batch.resets)
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    bits = float(nats) / torch.log(torch.tensor(2.0)) / int((windows.batch(0).targets >= 0).sum())
    assert result.bits_per_byte == pytest.approx(float(bits), rel=1e-4)


def test_stop_and_resume_leaves_no_trace(tmp_path: Path) -> None:
    held_out = evaluator(corpus(tmp_path / "data"))

    def runs(out: str, listener: At | None = None) -> tuple[Path, bool]:
        asked = config(tmp_path, out, steps=20, evaluate_every=6, micro_batch=3, **SUBWORDS)
        result = train(asked, evaluators=[held_out], listener=listener)
        return result.out, result.finished

    whole, _ = runs("whole")
    parts, finished = runs("parts", At("train", 10, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert not finished
    assert runs("parts") == (parts, True)
    assert weights(parts) == weights(whole)
    assert curve(parts) == curve(whole)
    vocabularies = {path.read_bytes() for run in (whole, parts) for path in run.glob("step-*/subwords.json")}
    assert len(vocabularies) == 1


def test_a_run_with_another_vocabulary_is_another_run(tmp_path: Path) -> None:
    train(config(tmp_path, steps=2, **SUBWORDS))
    for other, words in ((290, "tokenizer is 290, was 300"), (None, "tokenizer is not given, was 300")):
        with pytest.raises(ValueError, match=words):
            train(config(tmp_path, steps=2, context=60, tokenizer=other))


def test_what_a_tokenizer_cannot_do_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer must be at least 256"):
        config(tmp_path, tokenizer=100)
    with pytest.raises(ValueError, match="tokenizer must be at most 1,048,576"):
        config(tmp_path, tokenizer=10**11)
    for size in (255, 10**11):
        with pytest.raises(ValueError, match=f"at least 256 entries and at most 1,048,576, got {size}"):
            Subwords.learn([b"the cat"], size)
    with pytest.raises(ValueError, match="carry_state"):
        config(tmp_path, carry_state=True, **SUBWORDS)
