"""The tensors of a folder by name, opened without reading them: safetensors, sharded safetensors, or a safe pickle.

Nothing here runs code from a file. A pickle is read with `weights_only=True` and memory-mapped, or refused; a name in
an index that would leave the folder is refused.
"""

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mambabyte.config import load_json

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
_INDEX_LIMIT = 1 << 26
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# How files of torch.save begin: a zip archive, and before torch 1.6 a pickled number.
_ZIP, _BEFORE_ZIP = b"PK\x03\x04", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


class Weights(Mapping[str, Tensor]):
    """Tensors by name: `shape` and `dtype` read headers only, indexing maps the data into memory."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        return file if isinstance(file, Tensor) else file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        file = self._files[name]
        return tuple(file.shape if isinstance(file, Tensor) else file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str | torch.dtype:
        """The dtype of one tensor; the file's own word for it where it is not a floating dtype of torch's."""
        file = self._files[name]
        if isinstance(file, Tensor):
            return file.dtype
        word = file.get_slice(name).get_dtype()
        return _DTYPES.get(word, word)

    def same(self, a: str, b: str) -> bool:
        """Whether two tensors are of floating dtypes of torch's that compare, and hold equal values; reads both."""
        plain = all(self.dtype(name) in _DTYPES.values() for name in (a, b))
        return plain and self.shape(a) == self.shape(b) and torch.equal(self[a], self[b])


def open_weights(folder: Path) -> Weights:
    """The weights of a folder: the first of model.safetensors, its index, pytorch_model.bin and its index.

    Raises ValueError if there are none, or if a file is damaged, unsafe, or outside the folder.
    """
    for name, read in ((SAFETENSORS, _read_safetensors), (PICKLE, _read_pickle)):
        if (folder / name).is_file():
            return Weights(read(folder / name))
        index = folder / f"{name}.index.json"
        if index.is_file():
            return Weights(_read_shards(index, read))
    raise ValueError(f"{folder}: holds no weights: there is no {SAFETENSORS}, no {PICKLE}, and no index of shards")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, readable by whom other files are. A full disk is an OSError, as for other files."""
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave the file to its owner alone
    try:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    path.chmod(mode)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        file: Any = safe_open(path, framework="pt")
        return dict.fromkeys(file.keys(), file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    _expect_zip(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused: besides tensors this pickle holds objects that could run code when it is loaded"
        ) from error
    except Exception as error:  # a pickle is a program: a damaged one can fail in any way there is
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a whole file of torch.save's ({reason})") from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"{path}: expected a dict of tensors by name, got a {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"{path}: {name!r} is not a dense tensor")
        if tensor.is_meta or tensor.is_quantized:
            lack = "a shape without values" if tensor.is_meta else "quantized"
            raise ValueError(f"{path}: {name!r} is {lack}, where a plain floating-point tensor is needed")
    # A few stored bytes can be given any shape with strides of zero. Tied weights are stored once and named twice.
    asked, stored = sum(t.numel() * t.element_size() for t in tensors.values()), path.stat().st_size
    if asked > 2 * stored:
        raise ValueError(f"{path}: refused: a file of {stored} bytes that unfolds into tensors of {asked}")
    return tensors


def _expect_zip(path: Path) -> None:
    """Raise ValueError unless a file begins as a zip archive, the only format of torch.save's that can be mapped."""
    with path.open("rb") as file:
        start = file.read(len(_BEFORE_ZIP))
    if not start:
        raise ValueError(f"{path}: not a whole file of torch.save's: it is empty; copy it again")
    if start == _BEFORE_ZIP:
        raise ValueError(
            f"{path}: in the format of torch.save before torch 1.6, which cannot be mapped into memory; write it anew:"
            " torch.save(torch.load(path, weights_only=True), path)"
        )
    if not start.startswith(_ZIP):
        raise ValueError(f"{path}: refused: it does not begin as a file of torch.save's does; copy it again")


def _read_shards(index: Path, read: Any) -> dict[str, Any]:
    names = load_json(index, _INDEX_LIMIT).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise ValueError(f"{index}: expected a weight_map of tensor names to file names")
    shards = {shard: read(shard_path(index, shard)) for shard in sorted(set(names.values()))}
    missing = [name for name, shard in names.items() if name not in shards[shard]]
    if missing:
        raise ValueError(f"{index}: {missing[0]!r} is not in {names[missing[0]]}, where the index places it")
    return {name: shards[shard][name] for name, shard in names.items()}


def shard_path(index: Path, shard: str) -> Path:
    """The path of a shard that an index names.

    Raises ValueError if it is not a plain file name, does not exist, or is a link that leaves the folder. The blobs of
    a Hugging Face cache, to which its snapshots link, belong to the folder.
    """
    if Path(shard).name != shard or shard in ("", ".", "..") or "\\" in shard or "\0" in shard:
        raise ValueError(f"{index}: refused: {shard[:200]!r} is not the name of a file beside the index")
    path, folder = index.parent / shard, index.parent.resolve()
    if not path.is_file():
        raise ValueError(f"{index}: names {shard}, which is not there; copy the whole folder again")
    homes = [folder] + ([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise ValueError(f"{index}: refused: {shard} is a link that leaves the folder")
    return path
