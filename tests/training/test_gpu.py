import os
import signal
from pathlib import Path

import pytest
import torch

import mambabyte as mb
from mambabyte.training import train
from tests.training.small import At, config, curve

pytestmark = pytest.mark.gpu


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_curve_as_on_the_cpu(tmp_path: Path, precision: str) -> None:
    """The first steps agree to rounding; later ones may drift apart."""
    keys = {"precision": precision, "steps": 6, "log_every": 1, "learning_rate": 1e-3}
    runs = {device: curve(train(config(tmp_path, device, device=device, **keys)).out) for device in ("cpu", "cuda")}
    tolerance = 1e-4 if precision == "float32" else 2e-2
    for cpu, cuda in zip(runs["cpu"], runs["cuda"], strict=True):
        assert cuda["bits_per_byte"] == pytest.approx(cpu["bits_per_byte"], rel=tolerance)
        assert cuda["bytes"] == cpu["bytes"]


@pytest.mark.parametrize("changes", [{}, {"carry_state": True, "micro_batch": 3, "precision": "bfloat16"}])
def test_stop_and_resume_on_the_same_curve(tmp_path: Path, changes: dict) -> None:
    def run(out: str, listener: At | None = None) -> Path:
        return train(config(tmp_path, out, device="cuda", steps=20, **changes), listener=listener).out

    whole, parts = run("whole"), run("parts", At("train", 10, stop))
    assert max(record["step"] for record in curve(parts)) == 10
    run("parts")
    for a, b in zip(curve(whole), curve(parts), strict=True):
        assert a.keys() == b.keys()
        assert a["bits_per_byte"] == pytest.approx(b["bits_per_byte"], rel=1e-5)
    for a, b in zip(mb.load(whole).parameters(), mb.load(parts).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_run_moves_from_gpu_to_cpu(tmp_path: Path) -> None:
    train(config(tmp_path, device="cuda", steps=4))
    result = train(config(tmp_path, device="cpu", steps=8))
    assert result.steps == 8
    assert next(result.model.parameters()).device.type == "cpu"
