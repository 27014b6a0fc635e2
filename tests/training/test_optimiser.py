import pytest
import torch

from mambabyte.models import ByteLM
from mambabyte.models.presets import PRESETS
from mambabyte.training import optimiser as adamw
from tests.training.small import MODEL


@pytest.mark.parametrize("preset", ["mambabyte-tiny", "mambabyte-374m"])
def test_matrices_and_taps_decay_and_nothing_else(preset: str) -> None:
    with torch.device("meta"):
        model = ByteLM(PRESETS[preset])
    kinds = {name.rpartition(".")[2] if ".layer." in name else name for name in _decaying(model) if ".0." in name}
    assert kinds == {"weight", "conv_weight"}
    rest = {name for name, _ in model.named_parameters()} - _decaying(model)
    assert {name.rpartition(".")[2] for name in rest if ".layer." in name} == {"A_log", "D", "dt_bias", "conv_bias"}
    assert all("norm" in name for name in rest if ".layer." not in name)
    assert {"embedding.weight", "head.weight"} <= _decaying(model)


def _decaying(model: ByteLM) -> set[str]:
    return {name for name, p in model.named_parameters() if adamw.decays(name, p)}


def test_without_gradient_only_what_decays_moves() -> None:
    torch.manual_seed(0)
    model = ByteLM(MODEL)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = adamw.build(model, learning_rate=0.1, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if adamw.decays(name, p) else before[name]
        torch.testing.assert_close(p.detach(), expected)


def test_state_moves_to_another_optimiser_exactly() -> None:
    def build(model: ByteLM) -> torch.optim.AdamW:
        return adamw.build(model, learning_rate=1e-2, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.1)

    def step(model: ByteLM, optimiser: torch.optim.AdamW, seed: int) -> None:
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimiser.step()

    first, second = ByteLM(MODEL), ByteLM(MODEL)
    one, two = build(first), build(second)
    assert not list(adamw.named_state(first, one))
    step(first, one, 1)
    second.load_state_dict(first.state_dict())
    adamw.load_state(second, two, {name: t.clone() for name, t in adamw.named_state(first, one)})
    step(first, one, 2)
    step(second, two, 2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
