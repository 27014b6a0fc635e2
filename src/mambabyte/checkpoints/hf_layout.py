"""Folders in the stock `mamba` layout of Hugging Face transformers, which opens them without any code of ours.

The keys are those of transformers' MambaConfig (https://huggingface.co/docs/transformers/model_doc/mamba); an absent
key has the default that transformers gives it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mambabyte import config as configs
from mambabyte.checkpoints import bounds
from mambabyte.checkpoints.files import Writer, json_writer
from mambabyte.checkpoints.layout import (
    CONFIG,
    Described,
    mamba_name,
    record,
    stack,
    stored_shape,
    the_mamba,
    why_not_mamba,
)
from mambabyte.checkpoints.tokenizer import tokenizer_writers
from mambabyte.checkpoints.weights import SAFETENSORS, Weights, save_tensors
from mambabyte.layers import MambaConfig, NormConfig
from mambabyte.models import ByteLMConfig
from mambabyte.models.byte_lm import BYTES

MODEL_TYPE = "mamba"
OURS = "byte_lm"
HEAD = "lm_head.weight"


def why_not(config: ByteLMConfig) -> str | None:
    """A sentence why stock Hugging Face Mamba cannot be `config`, or None if it can."""
    if config.norm.kind != "rms" or config.norm.bias:
        return "its norm is not an RMSNorm without bias, the only norm of Hugging Face's Mamba"
    return why_not_mamba(config)


def config_json(config: ByteLMConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json that transformers reads as `config`, for weights of `dtype`."""
    mamba = the_mamba(config)
    assert mamba is not None, "why_not was asked first"
    data = {
        "architectures": ["MambaForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.pattern),
        "state_size": mamba.d_state,
        "conv_kernel": mamba.d_conv,
        "expand": mamba.expand,
        "time_step_rank": mamba.dt_rank or "auto",
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.tied_head,
        "use_bias": mamba.bias,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "residual_in_fp32": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if _read(data, CONFIG) != config:  # our names of the layers, which transformers has no word for
        data[OURS] = configs.to_dict(config)
    return data


def read_config(data: Mapping[str, Any], where: str) -> ByteLMConfig:
    """The architecture that a config.json of stock `mamba` describes; `where` names it in errors.

    Raises ValueError naming the key that is out of bounds or that a `ByteLM` cannot express.
    """
    config = _read(data, where)
    if OURS in data:
        bounds.every_number(data[OURS], f"{where}: {OURS}")
        ours = configs.from_dict(ByteLMConfig, data[OURS], f"{where}: {OURS}")
        if why_not(ours) is None and _read(config_json(ours, torch.float32), where) == config:
            return ours
    return config


def _read(data: Mapping[str, Any], where: str) -> ByteLMConfig:
    if data.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"{where}: hidden_act is {data['hidden_act']!r}, but our Mamba layers compute silu only")
    mamba = MambaConfig(
        d_state=bounds.integer(data, "state_size", 16, 1, bounds.WIDTH, where),
        d_conv=bounds.integer(data, "conv_kernel", 4, 1, bounds.WIDTH, where),
        expand=bounds.integer(data, "expand", 2, 1, bounds.WIDTH, where),
        dt_rank=bounds.rank(data, "time_step_rank", where),
        bias=bounds.flag(data, "use_bias", False, where),
    )
    width = bounds.integer(data, "hidden_size", 768, 1, bounds.WIDTH, where)
    layers = bounds.integer(data, "num_hidden_layers", 32, 1, bounds.LAYERS, where)
    vocabulary = bounds.integer(data, "vocab_size", 50280, 1, bounds.VOCABULARY, where)
    if vocabulary < BYTES:
        raise ValueError(f"{where}: vocab_size is {vocabulary}; a model of bytes has at least {BYTES}, one id a byte")
    return ByteLMConfig(
        **stack(width, layers, mamba),
        norm=NormConfig(eps=bounds.epsilon(data, "layer_norm_epsilon", 1e-5, where)),
        tied_head=bounds.flag(data, "tie_word_embeddings", True, where),
        vocab_size=vocabulary,
    )


def describe(data: Mapping[str, Any], weights: Weights, where: str) -> Described:
    """How to read a stock `mamba` folder; see `Layout.describe`.

    A MambaModel saved without its head has names without "backbone."; a tied head may be stored or not. As in
    transformers 5, a head that is stored and differs from the embedding is not tied, whatever the config says.
    """
    config, notes = read_config(data, where), []
    prefix = "backbone." if any(name.startswith("backbone.") for name in weights) else ""
    word = "embedding" if f"{prefix}embedding.weight" in weights else "embeddings"
    table = f"{prefix}{word}.weight"
    if config.tied_head and {HEAD, table} <= set(weights) and not weights.same(HEAD, table):
        config = dataclasses.replace(config, tied_head=False)
        notes.append(f"{where}: says the head is tied, but its weights differ from the embedding's; the weights decide")

    def rename(name: str) -> str:
        stored = mamba_name(name, word)
        return stored if prefix else stored.removeprefix("backbone.")

    return Described(
        config,
        rename,
        zeros=() if bounds.flag(data, "use_conv_bias", True, where) else ("conv_bias",),
        ignored=frozenset({HEAD} if config.tied_head else ()),
        notes=tuple(notes),
    )


def writers(config: ByteLMConfig, tensors: Mapping[str, Tensor], trained: torch.dtype | None) -> dict[str, Writer]:
    """The files of a stock `mamba` folder; see `Layout.writers`."""
    stored = {}
    for name, tensor in tensors.items():
        if not (config.tied_head and name == "head.weight"):
            place = mamba_name(name, "embeddings")
            stored[place] = tensor.reshape(stored_shape(place, tuple(tensor.shape)))
    return {
        SAFETENSORS: lambda path: save_tensors(path, stored),
        **tokenizer_writers(),
        CONFIG: json_writer(config_json(config, tensors["embedding.weight"].dtype) | record(trained)),
    }
