"""A model and its folder: config.json, model.safetensors, a raw-byte tokenizer and SHA256SUMS.

The folder of a model of subwords holds subwords.json, its vocabulary, as well.

`save_model` writes the stock Hugging Face layout wherever it can express the model, and our own otherwise; `load` opens
those and the layouts of `mambabyte.checkpoints.layout`. Every shape and dtype is compared with the config, from the
headers, before a byte is allocated for the weights.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mambabyte.checkpoints import bounds, hf_layout, hub, mamba_ssm_layout, own_layout
from mambabyte.checkpoints.files import verify, write_files
from mambabyte.checkpoints.layout import CONFIG, TRAINED, Described, Layout, stored_shape
from mambabyte.checkpoints.weights import Weights, open_weights
from mambabyte.config import load_json, unknown
from mambabyte.data import subwords
from mambabyte.models import ByteLM, ByteLMConfig, SubwordLM

logger = logging.getLogger("mambabyte")

LAYOUTS: dict[str, Layout] = {"hf": hf_layout, "mambabyte": own_layout, "mamba-ssm": mamba_ssm_layout}
_FLOATS = bounds.DTYPES.values()
_SHOWN = 8


def save_model(model: ByteLM | SubwordLM, folder: str | Path, *, layout: str = "auto") -> None:
    """Write `model` into `folder` (made if missing); a model that is there is replaced only when the new one is whole.

    `layout` is "hf", "mambabyte", "mamba-ssm", or "auto": "hf" where stock transformers can hold the model, else
    "mambabyte". Raises ValueError if `folder` is a file or the layout cannot hold the model, OSError if the disk is
    full.
    """
    vocabulary = model.subwords if isinstance(model, SubwordLM) else None
    model = model.model if isinstance(model, SubwordLM) else model
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    write_folder(Path(folder), model.config, tensors, layout, trained=model.trained_dtype, vocabulary=vocabulary)


def load(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> ByteLM:
    """The model in a model folder, in the newest whole checkpoint of a run folder, or on the Hub (hf://owner/name).

    `dtype` casts the weights (A_log, D and the dt bias stay float32 at least); None keeps the stored dtype. Raises
    ValueError, a sentence for each thing that is wrong, if the folder holds no model that a `ByteLM` can be, or a model
    of subwords.
    """
    model = load_any(path, device=device, dtype=dtype)
    if isinstance(model, SubwordLM):
        raise ValueError(
            f"{path}: a model of subwords, which writes no bytes by itself but drafts for a model that does; "
            "give it as the drafter (generate --drafter, or drafter=load_any(...))"
        )
    return model


def load_any(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ByteLM | SubwordLM:
    """As `load`, but the folder may also hold a model of subwords, which comes with its vocabulary."""
    folder = find(path)
    model = _load(folder, device, dtype)
    if not is_of_subwords(folder):
        return model
    vocabulary = subwords.Subwords.load(folder)
    try:
        return SubwordLM(model, vocabulary)
    except ValueError as error:
        raise ValueError(f"{folder}: {subwords.FILE} is of another model: {error}; copy the folder again") from error


def is_of_subwords(folder: Path) -> bool:
    """Whether a model folder holds a model of subwords."""
    return (folder / subwords.FILE).is_file()


def _load(folder: Path, device: torch.device | str, dtype: torch.dtype | None) -> ByteLM:
    opened = open_folder(folder)
    for note in opened.notes:
        logger.warning("%s", note)
    model = opened.skeleton.to(dtype=dtype or opened.dtype())
    # Copies, for a mapped file that someone overwrites would change the model or kill the process.
    tensors = {
        name: opened[name].to(device, parameter.dtype, copy=True).contiguous()
        for name, parameter in model.state_dict().items()
        if name in opened
    }
    model.load_state_dict(tensors, strict=False, assign=True)
    if model.config.tied_head:
        model.head.weight = model.embedding.weight
    model.trained_dtype = opened.trained
    return model


def find(path: str | Path) -> Path:
    """The model folder at `path`: itself, the newest whole checkpoint of a run, or the local copy of one on the Hub.

    Raises ValueError if there is none.
    """
    if str(path).startswith(hub.SCHEME):
        return hub.download(hub.Reference.parse(str(path)))
    path = Path(path)
    if (path / CONFIG).is_file():
        return path
    if not path.exists():
        raise ValueError(f"{path}: no such folder; a model is a folder with a {CONFIG}, or a run folder")
    if not path.is_dir():
        raise ValueError(f"{path}: a file; a model is a folder with a {CONFIG}, or a run folder")
    from mambabyte.checkpoints.run import newest

    return newest(path)


class Opened(Mapping[str, Tensor]):
    """The tensors of a model folder under our names, in the stored dtype, read when they are asked for.

    `skeleton` is the model without memory (on the meta device); `notes` say what was wrong and how it was understood;
    `trained` is `ByteLM.trained_dtype`.
    """

    def __init__(self, described: Described, weights: Weights, folder: Path, trained: torch.dtype | None) -> None:
        self.config, self.notes, self.trained = described.config, described.notes, trained
        layers, stored = len(self.config.pattern), len(weights)
        if layers > stored:
            raise ValueError(f"{folder}: {CONFIG} asks for {layers} layers, but there are {stored} tensors in all")
        self.skeleton = _skeleton(described.config)
        self._shapes = {name: tuple(t.shape) for name, t in self.skeleton.state_dict().items()}
        if described.config.tied_head:
            del self._shapes["head.weight"]
        self._weights, self._described = weights, described

    def __getitem__(self, name: str) -> Tensor:
        stored = self._described.rename(name)
        if stored not in self._weights and self._may_be_zero(name):
            return torch.zeros(self._shapes[name], dtype=self._weights[self._described.rename("norm.weight")].dtype)
        return self._weights[stored].reshape(self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def dtype(self) -> torch.dtype:
        """The widest dtype among the tensors that a cast to half precision would cast."""
        halved = _skeleton(self.config).to(torch.bfloat16).state_dict()
        stored = [self._stored_dtype(name) for name in self if halved[name].dtype == torch.bfloat16]
        return functools.reduce(torch.promote_types, stored)

    def mismatches(self) -> list[str]:
        """A sentence for every tensor that is missing, has another shape or dtype, or does not belong to the model."""
        wanted = {self._described.rename(name): name for name in self._shapes}
        found = [sentence for stored, name in wanted.items() if (sentence := self._mismatch(stored, name))]
        strangers = set(self._weights) - set(wanted) - self._described.ignored
        return found + [f"tensor {name!r} belongs to no part of this model" for name in sorted(strangers)]

    def _mismatch(self, stored: str, name: str) -> str | None:
        if stored not in self._weights:
            return None if self._may_be_zero(name) else f"tensor {stored!r} is missing"
        wanted, shape = stored_shape(stored, self._shapes[name]), self._weights.shape(stored)
        if shape != wanted:
            return f"tensor {stored!r} has shape {list(shape)}, where the config asks for {list(wanted)}"
        dtype = self._weights.dtype(stored)
        return None if dtype in _FLOATS else f"tensor {stored!r} is {dtype}, where a floating-point dtype is needed"

    def _may_be_zero(self, name: str) -> bool:
        return name.endswith(self._described.zeros) if self._described.zeros else False

    def _stored_dtype(self, name: str) -> torch.dtype:
        stored = self._described.rename(name)
        dtype = self._weights.dtype(stored) if stored in self._weights else torch.float16
        assert isinstance(dtype, torch.dtype), "mismatches were looked for first"
        return dtype


def open_folder(folder: Path) -> Opened:
    """The model in a model folder, checked but not read. Raises ValueError, with a line for each wrong tensor."""
    verify(folder)
    where = str(folder / CONFIG)
    data = load_json(folder / CONFIG)
    weights = open_weights(folder)
    described = _layout(data, where).describe(data, weights, where)
    opened = Opened(described, weights, folder, bounds.dtype(data, TRAINED, where))
    if wrong := opened.mismatches():
        more = [f"... and {len(wrong) - _SHOWN} more like these"] if len(wrong) > _SHOWN else []
        raise ValueError("\n  ".join([f"{folder}: the weights do not fit {CONFIG}:", *wrong[:_SHOWN], *more]))
    return opened


def write_folder(
    folder: Path,
    config: ByteLMConfig,
    tensors: Mapping[str, Tensor],
    layout: str = "auto",
    *,
    trained: torch.dtype | None,
    vocabulary: subwords.Subwords | None = None,
) -> None:
    """Write a model folder from tensors under our names.

    `layout` as for `save_model`; `trained` is `ByteLM.trained_dtype`.
    """
    if layout == "auto":
        layout = "mambabyte" if hf_layout.why_not(config) else "hf"
    if layout not in LAYOUTS:
        raise ValueError(unknown("layout", layout, LAYOUTS))
    chosen = LAYOUTS[layout]
    if reason := chosen.why_not(config):
        raise ValueError(f"the {layout} layout cannot hold this model: {reason}; the mambabyte layout can")
    extra = {} if vocabulary is None else {subwords.FILE: vocabulary.write}
    write_files(folder, {**chosen.writers(config, tensors, trained), **extra})
    if vocabulary is None:  # that of an earlier model would make one of subwords of this one
        (folder / subwords.FILE).unlink(missing_ok=True)


def _skeleton(config: ByteLMConfig) -> ByteLM:
    with torch.device("meta"):
        return ByteLM(config)


def _layout(data: Mapping[str, object], where: str) -> Layout:
    model_type = data.get("model_type")
    if model_type is None and mamba_ssm_layout.KEYS & set(data):
        return mamba_ssm_layout
    for layout in (hf_layout, own_layout):
        if model_type == layout.MODEL_TYPE:
            return layout
    raise ValueError(
        f"{where}: not the config of a model we read: model_type is {str(model_type)[:60]!r}, where Hugging Face"
        f" layouts say {hf_layout.MODEL_TYPE!r} or {own_layout.MODEL_TYPE!r} and mamba-ssm says d_model and n_layer"
    )
