import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import mambabyte as mb
from mambabyte.models import ByteLM
from mambabyte.training import TrainConfig, train
from mambabyte.training.records import read_records
from tests.training.small import At, config, curve


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def weights(run: Path | str) -> dict[str, bytes]:
    """The tensors of the newest checkpoint, byte for byte."""
    folder = max(Path(run).glob("step-*"), key=lambda path: int(path.name[5:]))
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "training.safetensors")}


def mean_loss(model: ByteLM) -> dict[str, float]:
    """An evaluator that also draws random numbers, which must not reach the training."""
    ids = torch.arange(64)[None] % 7 + 97 + (torch.rand(1) < 2).long()
    logits, _ = model(ids)
    return {"held_out": float(logits.float().log_softmax(-1).mean())}


def test_learns_and_leaves_a_model_behind(tmp_path: Path) -> None:
    result = train(config(tmp_path, steps=60, log_every=20, learning_rate=2e-2, clip=1.0))
    first, last = curve(result.out)[0], curve(result.out)[-1]
    assert last["bits_per_byte"] < first["bits_per_byte"] - 1
    assert last["bits_per_byte"] == result.bits_per_byte < 4.5
    assert (result.steps, result.finished) == (60, True)
    assert result.bytes == last["bytes"] <= 60 * 4 * 24
    loaded = mb.load(result.out)
    for a, b in zip(loaded.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert json.loads(json.dumps(result.to_dict()))["steps"] == 60


@pytest.mark.parametrize(
    "changes",
    [{}, {"carry_state": True, "micro_batch": 3}, {"checkpoint_activations": True}, {"precision": "bfloat16"}],
)
def test_stop_and_resume_leaves_no_trace(tmp_path: Path, changes: dict) -> None:
    def runs(out: str, listener: At | None = None) -> tuple[TrainConfig, bool]:
        asked = config(tmp_path, out, steps=20, evaluate_every=6, **changes)
        return asked, train(asked, evaluators=[mean_loss], sampler=lambda _: "text", listener=listener).finished

    whole, finished = runs("whole")
    assert finished
    parts, finished = runs("parts", At("train", 10, stop))
    assert not finished
    assert max(record["step"] for record in curve(parts.out)) == 10
    assert runs("parts", At("evaluation", 12, stop)) == (parts, False)
    assert runs("parts") == (parts, True)
    assert weights(parts.out) == weights(whole.out)
    assert curve(parts.out) == curve(whole.out)
    assert {record["event"] for record in curve(whole.out)} == {"train", "evaluation", "sample"}


def test_stop_between_log_lines_and_inside_an_evaluation(tmp_path: Path) -> None:
    calls = []

    def evaluator(model: ByteLM) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            stop()
        return mean_loss(model)

    whole, parts = (config(tmp_path, out, evaluate_every=4, log_every=5) for out in ("whole", "parts"))
    train(whole, evaluators=[mean_loss])
    stopped = train(parts, evaluators=[evaluator])
    assert (stopped.steps, stopped.finished) == (8, False)
    train(parts, evaluators=[mean_loss])
    assert curve(parts.out) == curve(whole.out)
    assert weights(parts.out) == weights(whole.out)


def test_signal_during_a_step_gives_the_step_up(tmp_path: Path) -> None:
    whole, parts = (config(tmp_path, out, micro_batch=1, steps=6) for out in ("whole", "parts"))
    train(whole)
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == 4 * 3 + 2:  # the second of four micro-batches of the fourth step
            stop()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: count() if isinstance(module, torch.nn.Embedding) else None
    )
    result = train(parts)
    handle.remove()
    assert result.steps == 3
    train(parts)
    assert weights(parts.out) == weights(whole.out)


def test_reports_and_checkpoints_do_not_touch_what_is_learned(tmp_path: Path) -> None:
    quiet = config(tmp_path, "quiet", log_every=100)
    loud = config(tmp_path, "loud", log_every=1, evaluate_every=1, save_every=1, keep=3)
    train(quiet)
    train(loud, evaluators=[mean_loss], sampler=lambda model: str(mean_loss(model)))
    assert weights(quiet.out)["model.safetensors"] == weights(loud.out)["model.safetensors"]
    assert sorted(path.name for path in Path(loud.out).glob("step-*")) == ["step-10", "step-11", "step-12"]


def test_evaluates_ten_times_over_a_run_unless_told(tmp_path: Path) -> None:
    result = train(config(tmp_path, steps=20), evaluators=[mean_loss, lambda _: {"one": 1.0}])
    steps = [record["step"] for record in read_records(result.out) if record["event"] == "evaluation"]
    assert steps == list(range(2, 21, 2))
    assert set(result.figures) == {"held_out", "one"}


def test_costly_evaluations_do_not_eat_a_run_that_is_limited_by_time(tmp_path: Path) -> None:
    def slow(_: ByteLM) -> dict[str, float]:
        time.sleep(0.5)
        return {"one": 1.0}

    result = train(config(tmp_path, steps=None, minutes=1.5 / 60), evaluators=[slow])
    records = [record for record in read_records(result.out) if record["event"] == "evaluation"]
    assert len(records) == 2, "the first and the last"
    assert records[-1]["step"] == result.steps


def test_byte_budget_ends_the_run(tmp_path: Path) -> None:
    result = train(config(tmp_path, steps=None, bytes=1000))
    assert result.finished
    assert 1000 <= result.bytes < 1000 + 4 * 24


def test_time_budget_ends_the_run_with_the_cosine(tmp_path: Path) -> None:
    result = train(config(tmp_path, steps=None, minutes=0.01, final_learning_rate=0.0))
    assert result.finished
    assert result.seconds >= 0.6
    last = curve(result.out)[-1]
    assert last["progress"] == 1
    assert last["learning_rate"] < 3e-3


def test_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first = train(config(tmp_path))
    before = weights(first.out)
    again = train(config(tmp_path))
    assert again.to_dict() == first.to_dict()
    assert weights(first.out) == before


def test_larger_budget_goes_on(tmp_path: Path) -> None:
    train(config(tmp_path), evaluators=[mean_loss])
    result = train(config(tmp_path, steps=17), evaluators=[mean_loss])
    assert (result.steps, result.finished) == (17, True)
    assert [record["step"] for record in curve(result.out) if record["event"] == "train"] == [5, 10, 12, 15, 17]
    evaluated = [record["step"] for record in curve(result.out) if record["event"] == "evaluation"]
    assert evaluated[-1] == 17
    assert sum(step > 12 for step in evaluated) >= 3, "evaluations go on in the longer budget"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 1e-4}, "learning_rate is 0.0001, was 0.003"),
        ({"carry_state": True}, "carry_state is True, was False"),
        ({"model": None, "preset": "mambabyte-tiny"}, "the model is mambabyte-tiny, was another"),
    ],
)
def test_other_config_is_refused_by_name_and_harms_nothing(tmp_path: Path, changes: dict, words: str) -> None:
    run = train(config(tmp_path, steps=2)).out
    before = weights(run)
    with pytest.raises(ValueError, match=words):
        train(config(tmp_path, steps=2, **changes))
    assert weights(run) == before


def test_other_data_are_refused_and_moved_data_are_not(tmp_path: Path) -> None:
    first = config(tmp_path, steps=2)
    train(first)
    other = tmp_path / "other.bin"
    other.write_bytes(np.random.default_rng(1).bytes(3000))
    with pytest.raises(ValueError, match=r"not the bytes of .*data"):
        train(config(tmp_path, steps=4, data=(str(other),)))
    Path(first.data[0]).rename(tmp_path / "moved")
    assert train(config(tmp_path, steps=4, data=(str(tmp_path / "moved"),))).steps == 4


def test_never_resuming_keeps_the_earlier_run(tmp_path: Path) -> None:
    first = train(config(tmp_path, steps=3, log_every=1))
    again = train(config(tmp_path, steps=2, log_every=1, seed=1), resume="never")
    assert [record["step"] for record in curve(again.out)] == [1, 2]
    assert [record["step"] for record in curve(first.out / "before-1")] == [1, 2, 3]
    assert mb.load(first.out / "before-1").config == mb.load(first.out).config
    train(config(tmp_path, steps=2, log_every=1), resume="never")
    assert (first.out / "before-2" / "step-2").is_dir()


def test_data_that_change_end_the_run_with_what_was_learned(tmp_path: Path) -> None:
    asked = config(tmp_path, steps=40)
    file = Path(asked.data[0]) / "3.txt"
    with pytest.raises(ValueError, match=r"3\.txt"):
        train(asked, listener=At("train", 10, lambda: file.write_bytes(file.read_bytes() + b"more")))
    assert 10 <= max(int(path.name[5:]) for path in (tmp_path / "run").glob("step-*")) <= 20
    assert mb.load(tmp_path / "run").config == asked.model


def test_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    whole, parts = (config(tmp_path, out, save_every=4) for out in ("whole", "parts"))
    train(whole)
    run = train(parts).out
    with (run / "step-12" / "training.safetensors").open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"?")
    assert train(parts).steps == 12
    assert weights(run) == weights(whole.out)
    assert curve(run) == curve(whole.out)
    assert (run / "damaged-step-12").is_dir()
    for folder in run.glob("step-*"):
        (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*--resume never"):
        train(parts)


def test_masters_stay_float32_and_compute_in_bfloat16(tmp_path: Path) -> None:
    result = train(config(tmp_path, precision="bfloat16", steps=30, learning_rate=2e-2, clip=1.0))
    assert result.model.compute_dtype == torch.bfloat16
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    loaded = mb.load(result.out)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert (loaded.trained_dtype, loaded.compute_dtype) == (torch.bfloat16, None)
    assert curve(result.out)[-1]["bits_per_byte"] < curve(result.out)[0]["bits_per_byte"] - 0.5


def test_the_record_is_of_the_last_steps(tmp_path: Path) -> None:
    def trained(**changes: object) -> torch.dtype | None:
        result = train(config(tmp_path, **changes))
        assert result.model.trained_dtype == result.model.compute_dtype
        return mb.load(result.out).trained_dtype

    assert trained(steps=2, precision="float32") == torch.float32
    done = train(config(tmp_path, steps=2, precision="bfloat16"))  # no step is left to be made in it
    assert done.model.trained_dtype == torch.float32
    assert trained(steps=4, precision="bfloat16") == torch.bfloat16
    assert trained(steps=6, precision="bfloat16") == torch.bfloat16
    assert trained(steps=8, precision="float32") == torch.float32


def test_divergence_is_a_sentence_and_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"step 2; .*step-1 is from before; train with a lower learning rate"):
        train(config(tmp_path, learning_rate=1e30, save_every=1, log_every=5, warmup=1))
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-1"]


def test_no_documents_is_an_error_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        train(config(tmp_path, data=(str(tmp_path / "empty"),)))
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_the_same_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(config(tmp_path, tensorboard=True), sampler=lambda _: "text")
    events = EventAccumulator(str(result.out / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in events.Scalars("train/bits_per_byte")]
    expected = [(r["step"], r["bits_per_byte"]) for r in curve(result.out) if r["event"] == "train"]
    assert [step for step, _ in points] == [step for step, _ in expected]
    assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(points, expected, strict=True))
