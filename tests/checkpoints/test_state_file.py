"""States in files: the same values back, and every kind of damage refused."""

import dataclasses
import errno

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.checkpoints import load_state, save_state
from mambabyte.checkpoints.state_file import fingerprint
from mambabyte.layers import MambaConfig
from mambabyte.models import ByteLM, ByteLMConfig
from mambabyte.models.context import Context


def tiny_model(seed=0, d_model=16):
    torch.manual_seed(seed)
    return ByteLM(ByteLMConfig(d_model=d_model, layers={"m": MambaConfig(d_state=3)}, pattern=("m", "m"))).eval()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def state(model):
    with torch.no_grad():
        return model(torch.tensor([list(b"one row"), list(b"another")]))[1]


def assert_equal(a, b):
    assert type(a) is type(b)
    for (name, x), (_, y) in zip(a.named_tensors(), b.named_tensors(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, msg=name)


def test_a_state_comes_back_to_the_last_bit(model, state, tmp_path):
    save_state(state, tmp_path / "s", model)
    assert_equal(load_state(tmp_path / "s", model), state)
    context = Context(layers=state.layers, logits=torch.randn(2, 256))
    save_state(context, tmp_path / "s", model)
    assert_equal(load_state(tmp_path / "s", model), context)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_state_in_bfloat16_comes_back(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    with torch.no_grad():
        state = model(torch.tensor([[1, 2, 3]]))[1]
    save_state(state, tmp_path / "s", model)
    assert_equal(load_state(tmp_path / "s", model), state)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_anywhere_is_refused(model, state, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "s"
    save_state(state, path, model)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1)))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|not a state file|another model"):
        load_state(path, model)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(model, state, tmp_path, kept):
    save_state(state, tmp_path / "s", model)
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"damaged|not a state file"):
        load_state(tmp_path / "s", model)


def test_another_models_state_is_refused(model, state, tmp_path):
    save_state(state, tmp_path / "s", model)
    with pytest.raises(ValueError, match="another model"):
        load_state(tmp_path / "s", tiny_model(seed=1))
    with pytest.raises(ValueError, match="a state of this model has"):
        save_state(state, tmp_path / "t", tiny_model(d_model=32))


def test_the_fingerprint_sees_every_weight_and_the_config(model):
    first = fingerprint(model)
    assert first == fingerprint(tiny_model())
    for parameter in model.parameters():
        with torch.no_grad():
            old = parameter.view(-1)[0].item()
            parameter.view(-1)[0] += 1
            assert fingerprint(model) != first
            parameter.view(-1)[0] = old
    other = tiny_model()
    other.config = dataclasses.replace(other.config, norm=dataclasses.replace(other.config.norm, eps=1e-6))
    assert fingerprint(other) != first


def test_a_missing_file_and_a_missing_folder_are_named(model, state, tmp_path):
    with pytest.raises(OSError, match="absent"):
        load_state(tmp_path / "absent", model)
    with pytest.raises(OSError, match="nowhere"):
        save_state(state, tmp_path / "nowhere" / "s", model)


def test_a_failed_save_leaves_the_old_file(model, state, tmp_path, monkeypatch):
    save_state(state, tmp_path / "s", model)
    before = (tmp_path / "s").read_bytes()

    def full(path):
        raise OSError(errno.ENOSPC, "full", str(path))

    monkeypatch.setattr("mambabyte.checkpoints.state_file.sync", full)
    with pytest.raises(OSError, match="full") as error:
        save_state(state, tmp_path / "s", model)
    assert error.value.filename == str(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
