"""The CUDA engine's graphs, thread by thread on a CPU: one that was captured reads where the states lie now."""

import numpy as np
import pytest
import torch

from mambabyte.generation import cuda_step
from mambabyte.generation.cuda_step import CudaEngine
from mambabyte.layers import MambaConfig
from mambabyte.models import ByteLM, ByteLMConfig
from tests.emulator import gpu


def test_a_graph_is_captured_again_when_the_states_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.pretend(monkeypatch)
    torch.manual_seed(1)
    config = ByteLMConfig(d_model=16, layers={"mamba": MambaConfig(d_state=4)}, pattern=("mamba",))
    model = ByteLM(config).eval()
    model.compute_dtype = torch.bfloat16
    data, results = bytes(range(40, 60)), []
    for more in (0, cuda_step.FIRST_SLOTS):
        engine = CudaEngine(model)
        row = engine.join(model.init_state())
        engine.read([row], [data])
        for _ in range(more):
            engine.join(model.init_state())
        engine.read([row], [data])
        results.append(engine.read([row], [data[:1]])[0].copy())  # by a launch, from where the states are
    assert np.array_equal(*results)
