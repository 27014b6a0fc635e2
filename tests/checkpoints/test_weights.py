"""Weights on the disk: nothing in a stranger's folder runs code, leaves the folder, or is read half."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mambabyte.checkpoints.weights import open_weights

NAMES = [f"t{i}" for i in range(4)]


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.full((2, i + 1), float(i)) for i, name in enumerate(NAMES)}


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin"])
def sharded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The index of two shards."""
    save = save_file if request.param.endswith("safetensors") else torch.save
    save({n: tensors()[n] for n in NAMES[:2]}, tmp_path / "a")
    save({n: tensors()[n] for n in NAMES[2:]}, tmp_path / "b")
    index = tmp_path / f"{request.param}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {n: "aabb"[i] for i, n in enumerate(NAMES)}}))
    return index


def point(index: Path, name: object) -> None:
    """Let the index place t3 in the file `name`."""
    data = json.loads(index.read_text())
    data["weight_map"]["t3"] = name
    index.write_text(json.dumps(data))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_one_file_is_read_by_header_then_by_tensor(name: str, tmp_path: Path) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(tensors(), tmp_path / name)
    weights = open_weights(tmp_path)
    assert sorted(weights) == NAMES
    assert [weights.shape(n) for n in NAMES] == [(2, 1), (2, 2), (2, 3), (2, 4)]
    assert all(torch.equal(weights[n], t) and weights.dtype(n) == torch.float32 for n, t in tensors().items())


def test_shards_are_one_set_of_weights(sharded: Path) -> None:
    weights = open_weights(sharded.parent)
    assert all(torch.equal(weights[n], t) for n, t in tensors().items())


def test_safetensors_come_before_a_pickle(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert sorted(open_weights(tmp_path)) == NAMES


@pytest.mark.parametrize("name", ["../b", "/etc/passwd", "", ".", "..", "c/../b", "c/b", "c\\b", "b\0", "./b"])
def test_a_path_in_an_index_is_refused(sharded: Path, name: str) -> None:
    point(sharded, name)
    with pytest.raises(ValueError, match="refused"):
        open_weights(sharded.parent)


def test_a_link_out_of_the_folder_is_refused(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "b"
    (sharded.parent / "b").rename(outside)
    (sharded.parent / "b").symlink_to(outside)
    with pytest.raises(ValueError, match="leaves the folder"):
        open_weights(sharded.parent)


def test_links_of_a_hugging_face_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in (sharded, tmp_path / "a", tmp_path / "b"):
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert sorted(open_weights(snapshot)) == NAMES


@pytest.mark.parametrize("name", ["missing", 3, None, ["b"]])
def test_an_index_that_names_no_file_is_a_sentence(sharded: Path, name: object) -> None:
    point(sharded, name)
    with pytest.raises(ValueError, match=r"is not there|expected a weight_map"):
        open_weights(sharded.parent)


def test_an_index_that_misplaces_a_tensor_is_a_sentence(sharded: Path) -> None:
    point(sharded, "a")
    with pytest.raises(ValueError, match="'t3' is not in a"):
        open_weights(sharded.parent)


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: Path(path).write_bytes(pickle.dumps(value))])
def test_a_pickle_that_would_run_code_is_refused(save: object, tmp_path: Path) -> None:
    save(tensors() | {"bad": Trap(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: (refused|not a whole file)"):
        open_weights(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(1), {"a": {"b": torch.zeros(1)}}])
def test_a_pickle_of_anything_but_tensors_is_refused(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected a dict of tensors|is not a dense tensor"):
        open_weights(tmp_path)


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is not a dense tensor"):
        open_weights(tmp_path)


def test_a_tensor_without_values_is_named(tmp_path: Path) -> None:
    torch.save(tensors() | {"head": torch.zeros(3, device="meta")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="'head' is a shape without values"):
        open_weights(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning", "ignore:TypedStorage:UserWarning")
def test_a_quantized_tensor_is_named(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save(tensors() | {"head": quantized}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="'head' is quantized"):
        open_weights(tmp_path)


def test_the_format_before_zip_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before torch 1\.6.*write it anew"):
        open_weights(tmp_path)
    torch.save(torch.load(path, weights_only=True), path)
    assert sorted(open_weights(tmp_path)) == NAMES


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "does not begin as a file of torch.save's"),
        (pickle.dumps({"a": 1}), "does not begin as a file of torch.save's"),
        (b"PK\x03\x04" + bytes(90), "not a whole file"),
    ],
)
def test_what_torch_save_did_not_write_is_a_sentence(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        open_weights(tmp_path)


def test_a_few_bytes_do_not_unfold_into_terabytes(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="refused: a file of"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_a_sentence(name: str, keep: int, tmp_path: Path) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(tensors(), tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{name}: (not a whole|refused)"):
        open_weights(tmp_path)


def test_no_weights_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        open_weights(tmp_path)
