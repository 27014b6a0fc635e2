"""The CUDA engine with its kernels run thread by thread on a CPU: slots, pieces, launches and graphs need no GPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mambabyte.generation import cuda_step
from mambabyte.generation.cuda_step import CudaEngine
from mambabyte.generation.engine import TorchEngine
from mambabyte.layers import MambaConfig
from mambabyte.models import ByteLM, ByteLMConfig
from tests.emulator import gpu

TEXT = b"A man is at his best when he reads; a machine, when it is read to. "


@pytest.fixture(autouse=True)
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.pretend(monkeypatch)


@pytest.fixture(scope="module")
def model() -> Iterator[ByteLM]:
    torch.manual_seed(1)
    mamba = MambaConfig(d_state=4)
    model = ByteLM(ByteLMConfig(d_model=24, layers={"mamba": mamba}, pattern=("mamba",) * 2)).eval()
    model.compute_dtype = torch.bfloat16
    return model


def bytewise(engine: CudaEngine | TorchEngine, data: bytes, row: int | None = None) -> np.ndarray:
    row = engine.join(engine.model.init_state()) if row is None else row
    return np.concatenate([engine.read([row], [data[i : i + 1]])[0].copy() for i in range(len(data))])


def test_logits_are_those_of_the_model(model: ByteLM) -> None:
    ours, theirs = bytewise(CudaEngine(model), TEXT[:8]), bytewise(TorchEngine(model), TEXT[:8])
    assert np.abs(ours - theirs).max() <= 0.03 * np.abs(theirs).max()


@pytest.mark.parametrize("length", [5, 18, 40])
def test_one_read_of_many_bytes_is_as_many_reads(model: ByteLM, length: int) -> None:
    engine = CudaEngine(model)
    row, twin = (engine.join(model.init_state()) for _ in range(2))
    assert np.array_equal(engine.read([row], [TEXT[:length]])[0], bytewise(engine, TEXT[:length], twin))
    for (name, a), (_, b) in zip(engine.state(row).named_tensors(), engine.state(twin).named_tensors(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("states", "shared"), [(200, gpu.SHARED_BYTES), (4, 99 << 10)], ids=["states", "small GPU"])
def test_many_bytes_are_read_where_the_kernels_for_many_do_not_fit(
    states: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "SHARED_BYTES", shared)
    model = ByteLM(ByteLMConfig(d_model=8, layers={"mamba": MambaConfig(d_state=states)}, pattern=("mamba",))).eval()
    engine = CudaEngine(model, dtype=torch.bfloat16)
    row, twin = (engine.join(model.init_state()) for _ in range(2))
    assert np.array_equal(engine.read([row], [TEXT[:20]])[0], bytewise(engine, TEXT[:20], twin))


def test_rows_are_as_if_alone(model: ByteLM) -> None:
    engine, alone = CudaEngine(model), CudaEngine(model)
    rows = [engine.join(model.init_state()) for _ in range(cuda_step.FIRST_SLOTS + 8)]
    data = [TEXT[i : i + 1 + i % 2] for i in range(len(rows))]
    logits = [a.copy() for a in engine.read(rows, data)]
    for i in (0, 7, len(rows) - 1):
        assert np.array_equal(logits[i], bytewise(alone, data[i]))


def test_rewind_fork_and_state(model: ByteLM) -> None:
    engine = CudaEngine(model)
    row = engine.join(model.init_state())
    engine.read([row], [TEXT[:12]])
    engine.rewind(row, 7)
    truth = bytewise(engine, TEXT[:11])[7:]
    for same in (row, engine.fork(row), engine.join(engine.state(row))):
        assert np.array_equal(bytewise(engine, TEXT[7:11], same), truth)
