"""The CUDA engine against the model itself, and rows as if alone, on a GPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mambabyte.generation.cuda_step import CudaEngine, why_not
from mambabyte.generation.engine import Engine, TorchEngine, open_engine, prefill
from mambabyte.layers import MambaConfig, NormConfig
from mambabyte.models import ByteLM, ByteLMConfig

pytestmark = pytest.mark.gpu

TEXT = b"A man is at his best when he reads; a machine, when it is read to. " * 40


def random_model(
    *, d_model: int = 96, layers: int = 3, norm: NormConfig | None = None, vocab_size: int = 256, **mamba: int
) -> ByteLM:
    torch.manual_seed(1)
    config = ByteLMConfig(
        d_model=d_model,
        layers={"mamba": MambaConfig(**mamba)},
        pattern=("mamba",) * layers,
        norm=norm or NormConfig(),
        vocab_size=vocab_size,
    )
    model = ByteLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.compute_dtype = torch.bfloat16
    return model.cuda().eval()


SHAPES = [
    {},
    {"d_model": 40, "d_state": 5, "d_conv": 2, "norm": NormConfig(kind="layer", bias=True)},
    {"d_model": 24, "d_state": 1, "dt_rank": 1, "layers": 1},
    {"d_model": 200, "d_state": 33, "dt_rank": 70, "d_conv": 3, "vocab_size": 300},
    {"d_model": 1024, "layers": 2},
    {"d_model": 1792, "layers": 2},
]


@pytest.fixture(params=SHAPES, ids=str)
def model(request: pytest.FixtureRequest) -> Iterator[ByteLM]:
    yield random_model(**request.param)
    torch.cuda.empty_cache()


def bytewise(engine: Engine, data: bytes, row: int | None = None) -> NDArray[np.float32]:
    row = engine.join(engine.model.init_state()) if row is None else row
    return np.concatenate([engine.read([row], [data[i : i + 1]])[0].copy() for i in range(len(data))])


def test_logits_are_those_of_the_model(model: ByteLM) -> None:
    ours, theirs = bytewise(CudaEngine(model), TEXT[:40]), bytewise(TorchEngine(model), TEXT[:40])
    model.compute_dtype = None
    exact = bytewise(TorchEngine(model), TEXT[:40])
    error = np.abs(ours - exact).max()
    assert error <= 2 * np.abs(theirs - exact).max() + 1e-3, "the engine errs more than the model in 16 bits does"


@pytest.mark.parametrize("length", [2, 15, 16, 17, 33, 64, 100, 1500])
def test_one_read_of_many_bytes_is_as_many_reads(length: int) -> None:
    engine = CudaEngine(random_model())
    row = engine.join(engine.model.init_state())
    together = engine.read([row], [TEXT[:length]])[0].copy()
    assert np.array_equal(together, bytewise(engine, TEXT[:length]))
    twin = engine.join(engine.model.init_state())
    bytewise(engine, TEXT[:length], twin)
    for (name, a), (_, b) in zip(engine.state(row).named_tensors(), engine.state(twin).named_tensors(), strict=True):
        assert torch.equal(a, b), name


def test_rows_are_as_if_alone(model: ByteLM) -> None:
    engine, alone = CudaEngine(model), CudaEngine(model)
    generator = np.random.default_rng(0)
    rows: list[tuple[int, int]] = []
    for count in (1, 3, 20, 40, 70, 11):
        rows += [(engine.join(model.init_state()), alone.join(model.init_state())) for _ in range(count)]
        picked = [rows[i] for i in generator.permutation(len(rows))[: max(1, len(rows) - 2)]]
        data = [TEXT[(start := int(generator.integers(500))) : start + int(generator.integers(1, 5))] for _ in picked]
        for (_, single), ids, logits in zip(
            picked, data, [a.copy() for a in engine.read([row for row, _ in picked], data)], strict=True
        ):
            assert np.array_equal(logits, bytewise(alone, ids, single))
        for row, single in rows[::7]:
            engine.leave(row)
            alone.leave(single)
        rows = [pair for i, pair in enumerate(rows) if i % 7]


def test_rewind_and_fork_and_states(model: ByteLM) -> None:
    engine = CudaEngine(model)
    row = engine.join(model.init_state())
    engine.read([row], [TEXT[:30]])
    engine.rewind(row, 11)
    truth = bytewise(engine, TEXT[:20])[11:]
    fork, copy = engine.fork(row), engine.join(engine.state(row))
    for same in (row, fork, copy):
        assert np.array_equal(bytewise(engine, TEXT[11:20], same), truth)


def test_it_goes_on_from_a_prefill(model: ByteLM) -> None:
    engine = CudaEngine(model)
    context = prefill(model, TEXT[:500])
    ours = bytewise(engine, TEXT[500:520], engine.join(context))
    model_engine = TorchEngine(model)
    theirs = bytewise(model_engine, TEXT[500:520], model_engine.join(context))
    assert np.abs(ours - theirs).max() <= 0.05 * np.abs(theirs).max()


def test_a_run_in_bfloat16_is_opened_in_it_unless_asked_otherwise() -> None:
    """A folder of a run: float32 weights, no compute dtype, and a record of what training computed in."""
    model = random_model()
    model.compute_dtype, model.trained_dtype = None, torch.bfloat16
    engine, asked = open_engine(model), open_engine(model, weights="bfloat16")
    assert (engine.name, engine.weights) == ("cuda", "bfloat16")
    assert np.array_equal(bytewise(engine, TEXT[:40]), bytewise(asked, TEXT[:40]))
    exact = open_engine(model, weights="float32")
    assert (exact.name, exact.weights) == ("torch", "float32")
    model.trained_dtype = None
    assert np.array_equal(bytewise(exact, TEXT[:40]), bytewise(open_engine(model), TEXT[:40]))


def test_what_it_cannot_run_is_named() -> None:
    model = random_model()
    assert why_not(model) is None
    with pytest.raises(ValueError, match="float16"):
        CudaEngine(model, dtype=torch.float32)
    biased = ByteLM(ByteLMConfig(d_model=16, layers={"m": MambaConfig(bias=True)}, pattern=("m",))).cuda()
    with pytest.raises(ValueError, match="bias"):
        CudaEngine(biased)
