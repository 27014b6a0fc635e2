"""Which engine with which weights: what is asked for, what a model computes in, on a GPU what it was trained in."""

import copy

import pytest
import torch

from mambabyte.generation import generate, open_engine
from mambabyte.generation.drafters import drafting_engine
from mambabyte.generation.engine import TorchEngine, dtype_on_gpu
from mambabyte.models import ByteLM
from tests.generation.conftest import tiny_model

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


def model_of(stored: torch.dtype, compute: torch.dtype | None, trained: torch.dtype | None) -> ByteLM:
    model = tiny_model().to(stored)
    model.compute_dtype, model.trained_dtype = compute, trained
    return model


@pytest.mark.parametrize(
    ("stored", "compute", "trained", "expected"),
    [
        (F32, None, None, F32),  # a folder from before there was a record
        (F32, None, F32, F32),
        (F32, None, BF16, BF16),  # masters of a run
        (F32, F32, BF16, F32),  # someone says what to compute in
        (F32, BF16, None, BF16),  # a run that has just ended
        (BF16, None, None, BF16),
        (BF16, None, F32, BF16),  # cast after training
        (F16, None, BF16, F16),
        (F64, None, BF16, F64),
    ],
)
def test_on_a_gpu_masters_are_rounded_as_in_training(
    stored: torch.dtype, compute: torch.dtype | None, trained: torch.dtype | None, expected: torch.dtype
) -> None:
    model = model_of(stored, compute, trained)
    assert dtype_on_gpu(model, None) == expected
    assert dtype_on_gpu(model, "float32") == F32
    assert dtype_on_gpu(model, "bfloat16") == BF16
    with pytest.raises(ValueError, match="weights='int8' is for CPUs; on a GPU give 'bfloat16' or 'float32'"):
        dtype_on_gpu(model, "int8")


@pytest.mark.parametrize("trained", [F32, BF16])
def test_on_a_cpu_the_record_changes_nothing(model: ByteLM, trained: torch.dtype) -> None:
    recorded = copy.deepcopy(model)
    recorded.trained_dtype = trained
    engine = open_engine(recorded)
    assert (engine.name, engine.weights) == ("native", "float32")
    assert TorchEngine(recorded).weights == "float32"
    options = {"max_bytes": 60, "seed": 4}
    assert generate(recorded, b"abc", **options) == generate(model, b"abc", **options)


@pytest.mark.parametrize("trained", [None, F32, BF16])
def test_guesses_have_16_bits_whatever_was_trained(trained: torch.dtype | None) -> None:
    engine = drafting_engine(model_of(F32, None, trained))
    assert engine.weights == "bfloat16"
    assert dtype_on_gpu(engine.model, None) == BF16


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_an_engine_says_what_it_keeps(model: ByteLM, weights: str) -> None:
    assert open_engine(model, weights=weights).weights == weights
