"""A state in a file: what a model has read, so that a long context is read once.

One safetensors file. Its metadata names the model by the SHA-256 of its config and weights, and holds the SHA-256 of
the whole file (computed with that field as zeros), so that a flipped bit anywhere, a truncated file and another model's
state are all refused: a state that is slightly wrong generates slightly wrong text without a word.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from mambabyte.checkpoints.files import sync
from mambabyte.models import ByteLM, ByteLMState
from mambabyte.models.context import Context

FORMAT = "mambabyte-state-1"
LOGITS = "logits"  # the one tensor that a Context has and a bare state has not
_UNSIGNED = "0" * 64
_Entry: TypeAlias = tuple[tuple[int, ...], torch.dtype]


def save_state(state: ByteLMState, path: str | Path, model: ByteLM) -> None:
    """Write `state`, which `model` has computed, to a file that is whole or absent.

    A `Context` keeps the logits of the next byte. Raises ValueError if the state is not of `model`'s shapes, OSError if
    it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.named_tensors()}
    _expect_fit("the state", tensors, model)
    metadata = {"format": FORMAT, "model": fingerprint(model), "sha256": _UNSIGNED}
    data = serialise(tensors, metadata=metadata)
    signature = hashlib.sha256(data).hexdigest()
    _write(Path(path), data.replace(_UNSIGNED.encode(), signature.encode(), 1))


def load_state(path: str | Path, model: ByteLM) -> ByteLMState:
    """The state that `save_state` wrote, on the device of `model`; a `Context` if it was one.

    Raises ValueError if the file is damaged, no state, or the state of another model; OSError if it cannot be read.
    """
    data = Path(path).read_bytes()
    metadata = _metadata(data)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a state file of this version of mambabyte, or its beginning is damaged")
    signature = metadata.get("sha256", "")
    if hashlib.sha256(data.replace(signature.encode(), _UNSIGNED.encode(), 1)).hexdigest() != signature:
        raise ValueError(f"{path}: damaged: its contents do not match its checksum; read the context again")
    if metadata.get("model") != fingerprint(model):
        raise ValueError(f"{path}: the state of another model; load it with the model that wrote it")
    try:
        tensors = parse(data)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    _expect_fit(str(path), tensors, model)
    device = model.embedding.weight.device
    rebuilt = _template(tensors, model).to("cpu")
    names = iter([name for name, _ in rebuilt.named_tensors()])
    state = rebuilt.map(lambda _: tensors[next(names)].to(device))
    return Context(layers=state.layers, logits=tensors[LOGITS].to(device)) if LOGITS in tensors else state


def fingerprint(model: ByteLM) -> str:
    """SHA-256 of a model's config and of every weight, with names and dtypes: 64 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(model.config_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _template(tensors: dict[str, Tensor], model: ByteLM) -> ByteLMState:
    batch = next((tensor.shape[0] for tensor in tensors.values() if tensor.ndim), 0)
    return model.init_state(batch)


def _expect_fit(where: str, tensors: dict[str, Tensor], model: ByteLM) -> None:
    template = _template(tensors, model)
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in template.named_tensors()}
    if LOGITS in tensors:
        wanted[LOGITS] = ((template.batch, 256), torch.float32)
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if not _fits(found.get(name), wanted.get(name)):
            expected, got = (_say(side.get(name)) for side in (wanted, found))
            raise ValueError(f"{where}: {name} is {got}, but a state of this model has {expected}")


def _fits(found: _Entry | None, wanted: _Entry | None) -> bool:
    """Equal, or float32 for 16 bits: an engine may keep what the model would round, so that it goes on as it was."""
    return found == wanted or (wanted is not None and wanted[1].itemsize == 2 and found == (wanted[0], torch.float32))


def _say(entry: _Entry | None) -> str:
    return "absent" if entry is None else f"{entry[1]} {entry[0]}"


def _metadata(data: bytes) -> dict[str, str]:
    """The text metadata in a safetensors header; nothing if there is none that can be read."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.get("__metadata__", {})
        return {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(data)
        sync(aside)
        aside.replace(path)
    except OSError as error:
        error.filename = str(path)  # not the name of the file beside it
        raise
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)
