"""What a folder layout is: how config.json and tensor names on the disk say what a `ByteLM` is.

Three layouts are known: `hf` (stock Hugging Face `mamba`), `mamba_ssm` (published weights) and `own` (what neither can
express). The first two share the names of a layer's tensors, translated here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from mambabyte.checkpoints import bounds
from mambabyte.checkpoints.files import Writer
from mambabyte.checkpoints.weights import Weights
from mambabyte.layers import LayerConfig, MambaConfig
from mambabyte.models import ByteLMConfig

CONFIG = "config.json"
TRAINED = "trained_dtype"  # the key of `ByteLM.trained_dtype`, beside "dtype", that of the stored weights


@dataclasses.dataclass(frozen=True)
class Described:
    """How to read one folder.

    `rename` gives the name on the disk of a parameter of ours. `zeros` are endings of parameters that may be absent and
    are then zero, `ignored` tensors that may be present and are not read. `notes` are sentences on what was wrong with
    the folder and how it was understood.
    """

    config: ByteLMConfig
    rename: Callable[[str], str]
    zeros: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


class Layout(Protocol):
    """A module that reads and writes one kind of folder."""

    def why_not(self, config: ByteLMConfig) -> str | None:
        """A sentence why this layout cannot express `config`, or None."""
        ...

    def describe(self, data: Mapping[str, Any], weights: Weights, where: str) -> Described:
        """How to read a folder whose config.json holds `data`; `where` names it in errors. Raises ValueError."""
        ...

    def writers(
        self, config: ByteLMConfig, tensors: Mapping[str, Tensor], trained: torch.dtype | None
    ) -> dict[str, Writer]:
        """The files of a folder that holds `tensors`, named as `ByteLM.state_dict` names them.

        `trained` is `ByteLM.trained_dtype`, recorded where the format has room for it.
        """
        ...


def record(trained: torch.dtype | None) -> dict[str, str]:
    """What config.json says of `ByteLM.trained_dtype`: nothing where it is not known.

    Raises ValueError for a dtype that reading the folder would refuse.
    """
    if trained is None:
        return {}
    if trained not in bounds.DTYPES.values():
        raise ValueError(f"{TRAINED} must be None or one of {', '.join(bounds.DTYPES)} of torch's, got {trained}")
    return {TRAINED: str(trained).removeprefix("torch.")}


_FIXED = {"embedding.weight": "backbone.{embedding}.weight", "head.weight": "lm_head.weight"}
_RENAMED = {"conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "dt_bias": "dt_proj.bias"}
_LAYER = re.compile(r"layers\.(\d+)\.(norm|layer)\.(.+)")


def mamba_name(name: str, embedding: str) -> str:
    """The name in stock Mamba files of our parameter `name`; `embedding` is their word for the embedding table."""
    if name in _FIXED:
        return _FIXED[name].format(embedding=embedding)
    match = _LAYER.fullmatch(name)
    if match is None:
        return name.replace("norm.", "backbone.norm_f.", 1)
    index, part, rest = match.groups()
    place = f"norm.{rest}" if part == "norm" else f"mixer.{_RENAMED.get(rest, rest)}"
    return f"backbone.layers.{index}.{place}"


def stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape on the disk of the tensor stored as `name`: a depthwise convolution has one input channel a group."""
    return (shape[0], 1, shape[1]) if name.endswith("conv1d.weight") else shape


def the_mamba(config: ByteLMConfig) -> MambaConfig | None:
    """The one Mamba config that every layer of the pattern has, or None if they differ or are of other kinds."""
    kinds: set[LayerConfig] = {config.layers[name] for name in config.pattern}
    only = kinds.pop() if len(kinds) == 1 else None
    return only if isinstance(only, MambaConfig) else None


def why_not_mamba(config: ByteLMConfig) -> str | None:
    """A sentence why `config` is no plain stack of equal Mamba layers, or None."""
    if the_mamba(config) is None:
        kinds = " ".join(dict.fromkeys(config.pattern)) or "empty"
        return f"its layers are not Mamba layers of one size (pattern: {kinds})"
    return None


def stack(d_model: int, n_layers: int, mamba: MambaConfig) -> dict[str, Any]:
    """The fields of a `ByteLMConfig` that say: `n_layers` equal Mamba layers."""
    return {"d_model": d_model, "layers": {"mamba": mamba}, "pattern": ("mamba",) * n_layers}
