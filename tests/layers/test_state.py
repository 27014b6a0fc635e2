"""State as a value: clone, rows, join, detach, names."""

import dataclasses

import pytest
import torch

from mambabyte.layers import MambaState
from mambabyte.models import ByteLM, ByteLMState


@pytest.fixture
def state() -> ByteLMState:
    model = ByteLM.from_preset("mambabyte-tiny", seed=0)
    return model(torch.randint(0, 256, (3, 9)))[1]


def test_a_clone_shares_no_memory(state: ByteLMState) -> None:
    copy = state.clone()
    for _, tensor in copy.named_tensors():
        tensor.data.zero_()
    assert all(tensor.abs().sum() > 0 for _, tensor in state.named_tensors())


def test_rows_and_join_are_inverse(state: ByteLMState) -> None:
    rows = [state.rows([i]) for i in range(3)]
    assert [row.batch for row in rows] == [1, 1, 1]
    for (name, a), (_, b) in zip(state.named_tensors(), ByteLMState.join(rows).named_tensors(), strict=True):
        assert torch.equal(a, b), name
    swapped = state.rows([2, 0])
    assert torch.equal(swapped.layers[0].ssm, state.layers[0].ssm[[2, 0]])
    assert state.rows([]).batch == 0
    assert torch.equal(state.rows(slice(1, 3)).layers[1].conv, state.layers[1].conv[1:3])


def test_names_are_paths(state: ByteLMState) -> None:
    assert [name for name, _ in state.named_tensors()][:3] == ["layers.0.conv", "layers.0.ssm", "layers.1.conv"]


def test_detach_cuts_the_graph(state: ByteLMState) -> None:
    assert any(tensor.requires_grad for _, tensor in state.named_tensors())
    assert not any(tensor.requires_grad for _, tensor in state.detach().named_tensors())


def test_size_is_counted(state: ByteLMState) -> None:
    assert state.nbytes == sum(t.numel() * 4 for _, t in state.named_tensors())


def test_fields_cannot_be_replaced() -> None:
    state = MambaState(torch.zeros(1, 3, 4), torch.zeros(1, 4, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.conv = torch.ones(1, 3, 4)  # type: ignore[misc]
