"""Model folders: what is saved is what is loaded, and whatever is wrong with a folder is a sentence."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mambabyte as mb
from mambabyte.checkpoints import files, load, save_model
from mambabyte.layers import MambaConfig, NormConfig


def small(**changes: object) -> mb.ByteLMConfig:
    """A config of two narrow layers with some fields changed."""
    fields = {"d_model": 16, "layers": {"mamba": MambaConfig(d_state=4)}, "pattern": ("mamba",) * 2} | changes
    return mb.ByteLMConfig(**fields)


def same(a: mb.ByteLM, b: mb.ByteLM) -> bool:
    """Equal configs and equal tensors, bit for bit."""
    x, y = a.state_dict(), b.state_dict()
    equal = all(p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(x.values(), y.values(), strict=True))
    return a.config == b.config and list(x) == list(y) and equal


@pytest.fixture
def model() -> mb.ByteLM:
    torch.manual_seed(0)
    return mb.ByteLM(small())


@pytest.fixture
def folder(model: mb.ByteLM, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


configs = st.builds(
    small,
    d_model=st.integers(1, 24),
    layers=st.builds(
        lambda **sizes: {"mamba": MambaConfig(**sizes)},
        d_state=st.integers(1, 5),
        d_conv=st.integers(1, 6),
        expand=st.integers(1, 3),
        dt_rank=st.none() | st.integers(1, 5),
    ),
    pattern=st.integers(1, 3).map(lambda n: ("mamba",) * n),
    norm=st.builds(NormConfig, kind=st.sampled_from(["rms", "layer"]), bias=st.booleans(), eps=st.floats(0, 1e-3)),
    tied_head=st.booleans(),
    vocab_size=st.integers(256, 260),
)


@settings(max_examples=25, deadline=None)
@given(config=configs, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_a_loaded_model_is_the_saved_one(
    config: mb.ByteLMConfig, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, folder = mb.ByteLM(config).to(dtype), tmp_path_factory.mktemp("folder")
    model.save(folder)
    loaded = load(folder)
    assert same(loaded, model)
    assert (loaded.head.weight is loaded.embedding.weight) == config.tied_head
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("layout", ["hf", "mambabyte"])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16], ids=str)
def test_what_a_model_was_trained_in_is_kept_and_computes_nothing(
    model: mb.ByteLM, layout: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    model.trained_dtype = dtype
    save_model(model, tmp_path, layout=layout)
    loaded = load(tmp_path)
    assert (loaded.trained_dtype, loaded.compute_dtype) == (dtype, None)
    assert same(loaded, model)
    ids = torch.arange(40)[None]
    assert torch.equal(loaded(ids)[0], model(ids)[0])
    assert ("trained_dtype" in json.loads((tmp_path / "config.json").read_text())) == (dtype is not None)


def test_a_config_of_mamba_ssm_has_no_key_that_it_refuses(model: mb.ByteLM, tmp_path: Path) -> None:
    save_model(model, tmp_path / "without", layout="mamba-ssm")
    model.trained_dtype = torch.bfloat16
    save_model(model, tmp_path / "with", layout="mamba-ssm")
    without, recorded = ((tmp_path / name / "config.json").read_text() for name in ("without", "with"))
    assert recorded == without


@pytest.mark.parametrize("layout", ["hf", "mambabyte"])
@pytest.mark.parametrize("dtype", [torch.int8, "bfloat16"], ids=str)
def test_a_record_that_could_not_be_read_is_not_written(
    model: mb.ByteLM, layout: str, dtype: object, tmp_path: Path
) -> None:
    model.trained_dtype = dtype
    with pytest.raises(ValueError, match=f"trained_dtype must be None or one of float64.*got {dtype}"):
        save_model(model, tmp_path / "model", layout=layout)
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_record_of_nothing_is_none(folder: Path) -> None:
    edit(folder, trained_dtype=None)
    assert load(folder).trained_dtype is None


def test_names_of_layers_survive(tmp_path: Path) -> None:
    config = small(layers={"a": MambaConfig(d_state=4), "b": MambaConfig(d_state=4)}, pattern=("b", "a", "b"))
    save_model(mb.ByteLM(config), tmp_path)
    assert load(tmp_path).config == config
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mamba"


def test_layers_of_two_sizes_survive(tmp_path: Path) -> None:
    config = small(layers={"a": MambaConfig(d_state=4), "b": MambaConfig(d_conv=2)}, pattern=("b", "a", "b"))
    model = mb.ByteLM(config)
    save_model(model, tmp_path)
    assert same(load(tmp_path), model)


def test_dtype_is_a_cast_that_keeps_the_decay(folder: Path) -> None:
    loaded = load(folder, dtype=torch.bfloat16)
    assert loaded.embedding.weight.dtype == torch.bfloat16
    assert {loaded.layers[0].layer.A_log.dtype, loaded.layers[0].layer.dt_bias.dtype} == {torch.float32}


def test_a_loaded_model_outlives_its_folder(folder: Path, model: mb.ByteLM) -> None:
    loaded = load(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert same(loaded, model)


def test_saving_over_a_model_replaces_it_and_nothing_else(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    other = mb.ByteLM(small(d_model=8))
    other.save(folder)
    assert same(load(folder), other)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_model(folder: Path, model: mb.ByteLM) -> None:
    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    before = sorted(folder.iterdir())
    with pytest.raises(OSError, match="No space"):
        files.write_files(folder, {"model.safetensors": full})
    assert sorted(folder.iterdir()) == before
    assert same(load(folder), model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("place", [0.02, 0.5, 0.98])
def test_a_flipped_bit_is_found(folder: Path, name: str, place: float) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}: its contents do not match SHA256SUMS"):
        load(folder)


def test_a_truncated_file_is_found_without_checksums_too(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match="no config.json" if name == "config.json" else name):
        load(folder)


def test_no_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        load(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file"):
        load(tmp_path / "file")
    with pytest.raises(ValueError, match="a file in its place"):
        mb.ByteLM(small()).save(tmp_path / "file")


def edit(folder: Path, **changes: object) -> None:
    """Change keys of config.json, as a user who knows what SHA256SUMS is for."""
    data = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "SHA256SUMS").unlink(missing_ok=True)


def test_every_mismatch_is_a_sentence_up_to_eight(folder: Path) -> None:
    edit(folder, state_size=5)
    with pytest.raises(ValueError, match="do not fit") as error:
        load(folder)
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 4
    assert "'backbone.layers.0.mixer.A_log' has shape [32, 4], where the config asks for [32, 5]" in lines[1]
    edit(folder, hidden_size=17, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"and 2[0-9] more like these") as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 10**12}, "num_hidden_layers must be between 1 and 4096"),
        ({"hidden_size": 65536, "num_hidden_layers": 4096}, "asks for 4096 layers, but there are 23 tensors"),
        ({"hidden_size": 65536, "state_size": 65536, "expand": 65536, "conv_kernel": 65536}, "do not fit"),
        ({"hidden_size": -1}, "hidden_size must be between"),
        ({"vocab_size": 255}, "at least 256"),
        ({"vocab_size": 256.0}, "vocab_size must be a whole number"),
        ({"state_size": True}, "state_size must be a whole number"),
        ({"use_bias": True}, r"in_proj\.bias' is missing"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be a number"),
        ({"trained_dtype": "int8"}, "trained_dtype must be one of float64, float32, float16, bfloat16, got 'int8'"),
        ({"trained_dtype": ["bfloat16"]}, "trained_dtype must be one of"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": ["mamba"]}, "model_type"),
    ],
)
def test_a_config_that_cannot_be_is_a_sentence(folder: Path, changes: dict[str, object], sentence: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ValueError, match=sentence):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", '{"model_type": "mamba"', "[" * 100_000, "1" * 5000])
def test_a_config_that_is_no_json_object_is_a_sentence(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        load(folder)


def test_a_huge_config_is_not_read(folder: Path) -> None:
    edit(folder, padding=" " * (1 << 20))
    with pytest.raises(ValueError, match="larger than"):
        load(folder)


def test_the_run_folder_of_a_training_loads(model: mb.ByteLM, tmp_path: Path) -> None:
    from mambabyte.checkpoints import run

    run.save(tmp_path, 7, model.save, keep=2)
    assert same(load(tmp_path), model)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("byte_lm"), "byte_lm, the architecture, is missing"),
        (lambda c: c["byte_lm"].update(d_model=1 << 40), r"byte_lm\.d_model: 1099511627776 is above"),
        (lambda c: c["byte_lm"].update(pattern=["m"] * 5000), "a list of 5000 items"),
        (lambda c: c["byte_lm"].update(widht=3), "'widht' does not exist"),
        (lambda c: c["byte_lm"]["layers"]["m"].update(kind="magic"), "kind='magic' is not one of"),
        (lambda c: c["byte_lm"].update(norm=json.loads("[" * 500 + "]" * 500)), "nested deeper"),
        (lambda c: c["byte_lm"].update(d_model=17), "do not fit"),
    ],
)
def test_our_own_config_is_checked_as_strictly(change: object, sentence: str, tmp_path: Path) -> None:
    norm = NormConfig(kind="layer", bias=True)
    mb.ByteLM(small(norm=norm, layers={"m": MambaConfig()}, pattern=("m",))).save(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    change(data)
    (tmp_path / "config.json").write_text(json.dumps(data))
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path)


def test_transposed_storage_is_read_in_order(model: mb.ByteLM, tmp_path: Path) -> None:
    model.save(tmp_path, layout="mamba-ssm")
    (tmp_path / "SHA256SUMS").unlink()
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    torch.save({n: t.T.contiguous().T if t.ndim == 2 else t for n, t in state.items()}, tmp_path / "pytorch_model.bin")
    loaded = load(tmp_path)
    assert same(loaded, model)
    assert all(p.is_contiguous() for p in loaded.parameters())
