"""Our own layout, for models that stock Hugging Face Mamba cannot express: model_type "mambabyte".

config.json holds the architecture under "byte_lm", as `ByteLM.config_dict` gives it, and beside it the few keys that
tools of Hugging Face look for. Tensors have our names after "byte_lm.", which is where `mambabyte.hf` keeps its model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mambabyte import config as configs
from mambabyte.checkpoints import bounds
from mambabyte.checkpoints.files import Writer, json_writer
from mambabyte.checkpoints.layout import CONFIG, Described, record
from mambabyte.checkpoints.tokenizer import tokenizer_writers
from mambabyte.checkpoints.weights import SAFETENSORS, Weights, save_tensors
from mambabyte.models import ByteLMConfig

MODEL_TYPE = "mambabyte"
KEY = "byte_lm"


def why_not(config: ByteLMConfig) -> str | None:  # noqa: ARG001
    """None: this layout holds every model."""
    return None


def config_json(config: ByteLMConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of `config` with weights of `dtype`."""
    return {
        "architectures": ["MambaByteForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.pattern),
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": str(dtype).removeprefix("torch."),
        KEY: configs.to_dict(config),
    }


def read_config(data: Mapping[str, Any], where: str) -> ByteLMConfig:
    """The architecture under "byte_lm". Raises ValueError naming the key that is missing, wrong or out of bounds."""
    if KEY not in data:
        raise ValueError(f"{where}: model_type is {MODEL_TYPE!r} but {KEY}, the architecture, is missing")
    bounds.every_number(data[KEY], f"{where}: {KEY}")
    return configs.from_dict(ByteLMConfig, data[KEY], f"{where}: {KEY}")


def describe(data: Mapping[str, Any], weights: Weights, where: str) -> Described:
    """How to read such a folder; see `Layout.describe`."""
    config = read_config(data, where)
    ignored = frozenset({f"{KEY}.head.weight"} if config.tied_head else ())
    return Described(config, lambda name: f"{KEY}.{name}", ignored=ignored & frozenset(weights))


def writers(config: ByteLMConfig, tensors: Mapping[str, Tensor], trained: torch.dtype | None) -> dict[str, Writer]:
    """The files of such a folder; see `Layout.writers`."""
    stored = {f"{KEY}.{n}": t for n, t in tensors.items() if not (config.tied_head and n == "head.weight")}
    return {
        SAFETENSORS: lambda path: save_tensors(path, stored),
        **tokenizer_writers(),
        CONFIG: json_writer(config_json(config, tensors["embedding.weight"].dtype) | record(trained)),
    }
