"""Folders in the format of the mamba-ssm package, in which MambaByte's weights were published: pytorch_model.bin and
config.json with d_model, n_layer, ssm_cfg (https://github.com/state-spaces/mamba, models/config_mamba.py).

The published configs are wrong in places (https://huggingface.co/JunxiongWang/MambaByte_PG19_972M/discussions/1: they
say RMSNorm where the weights are those of LayerNorm), so the tensors decide and every disagreement is a note.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambabyte.checkpoints import bounds
from mambabyte.checkpoints.files import Writer, json_writer
from mambabyte.checkpoints.layout import CONFIG, Described, mamba_name, stack, stored_shape, the_mamba, why_not_mamba
from mambabyte.checkpoints.weights import PICKLE, Weights
from mambabyte.layers import MambaConfig, NormConfig
from mambabyte.models import ByteLMConfig
from mambabyte.models.byte_lm import BYTES

KEYS = {"d_model", "n_layer", "ssm_cfg"}
NORMS = {True: NormConfig(kind="rms"), False: NormConfig(kind="layer", bias=True)}  # by "rms_norm"
EMBEDDING, HEAD = "backbone.embedding.weight", "lm_head.weight"
_PADDED_TO = 8
# Arguments of mamba-ssm's layer that say how it is initialised or run, not what it computes.
_SILENT = {"layer", "conv_bias", "use_fast_path", "layer_idx", "device", "dtype"}
_SILENT |= {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"}
_LAYER = re.compile(r"backbone\.layers\.(\d{1,9})\.")
# The order in which mamba-ssm's modules are registered, hence that of its files.
_PARTS = ("embedding", "layers", "norm", "head")
_MIXER = ("A_log", "D", "in_proj", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "out_proj")


def why_not(config: ByteLMConfig) -> str | None:
    """A sentence why mamba-ssm cannot be `config`, or None if it can."""
    if config.norm not in NORMS.values():
        return "its norm is neither RMSNorm without bias nor LayerNorm with bias, both with epsilon 1e-5"
    return why_not_mamba(config)


def describe(data: Mapping[str, Any], weights: Weights, where: str) -> Described:
    """How to read such a folder; see `Layout.describe`. Raises ValueError for what is no stack of Mamba-1 layers."""
    _expect_mamba_1(data, where)
    config = _of_tensors(weights, where, tied=data.get("tie_embeddings", True) is True)
    return Described(
        config,
        lambda name: mamba_name(name, "embedding"),
        zeros=("conv_bias",) if _ssm(data).get("conv_bias") is False else (),
        ignored=frozenset({HEAD} if config.tied_head else ()),
        notes=tuple(_disagreements(data, config, weights, where)),
    )


def _ssm(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of every layer; absent and null, mamba-ssm's default, are none."""
    ssm: Mapping[str, Any] | None = data.get("ssm_cfg")
    return {} if ssm is None else ssm


def _expect_mamba_1(data: Mapping[str, Any], where: str) -> None:
    ssm = _ssm(data)
    if not isinstance(ssm, Mapping):
        raise ValueError(f"{where}: ssm_cfg must be a table of keys")
    if ssm.get("layer", "Mamba1") != "Mamba1":
        raise ValueError(f"{where}: ssm_cfg.layer is {str(ssm['layer'])[:60]!r}; only Mamba1 layers are read")
    for key in ("attn_layer_idx", "d_intermediate"):
        if data.get(key):
            raise ValueError(f"{where}: {key} is set, but only stacks of Mamba layers alone are read")


def _of_tensors(weights: Weights, where: str, *, tied: bool) -> ByteLMConfig:
    """The architecture that the shapes tell."""
    layers = [int(match[1]) for name in weights if (match := _LAYER.match(name))]
    mixer = "backbone.layers.0.mixer."
    needed = {EMBEDDING: 2, f"{mixer}A_log": 2, f"{mixer}conv1d.weight": 3, f"{mixer}dt_proj.weight": 2}
    for name, dimensions in needed.items():
        if name not in weights:
            raise ValueError(f"{where}: says mamba-ssm, but the weights lack {name!r}")
        if len(weights.shape(name)) != dimensions or 0 in weights.shape(name):
            raise ValueError(f"{where}: tensor {name!r} has shape {list(weights.shape(name))}, no shape it can have")
    vocabulary, width = weights.shape(EMBEDDING)
    if vocabulary < BYTES:
        raise ValueError(f"{where}: the embedding has {vocabulary} rows; a model of bytes has at least {BYTES}")
    if max(layers) >= bounds.LAYERS:
        raise ValueError(f"{where}: a tensor of layer {max(layers)}; at most {bounds.LAYERS} layers are read")
    inner, states = weights.shape(f"{mixer}A_log")
    if inner % width:
        raise ValueError(f"{where}: the layers are {inner} wide inside, no multiple of the model's width {width}")
    rank = weights.shape(f"{mixer}dt_proj.weight")[1]
    mamba = MambaConfig(
        d_state=states,
        d_conv=weights.shape(f"{mixer}conv1d.weight")[2],
        expand=inner // width,
        bias=f"{mixer}in_proj.bias" in weights,
    )
    if mamba.rank(width) != rank:
        mamba = dataclasses.replace(mamba, dt_rank=rank)
    return ByteLMConfig(
        **stack(width, max(layers) + 1, mamba),
        norm=NORMS["backbone.norm_f.bias" not in weights],
        tied_head=HEAD not in weights or (tied and weights.same(EMBEDDING, HEAD)),
        vocab_size=vocabulary,
    )


def _disagreements(data: Mapping[str, Any], config: ByteLMConfig, weights: Weights, where: str) -> Iterator[str]:
    """A sentence for every key that says something else than the tensors, or that has no meaning here."""
    found = config_json(config)
    ssm, said_ssm, said = found.pop("ssm_cfg"), _ssm(data), dict(data)
    multiple = data.get("pad_vocab_size_multiple", _PADDED_TO)
    if isinstance(multiple, int) and multiple > 0 and isinstance(said.get("vocab_size"), int):
        said["vocab_size"] = -(-said["vocab_size"] // multiple) * multiple
    told = {"d_model": found["d_model"], "n_layer": found["n_layer"], "vocab_size": found["vocab_size"]}
    told |= {"rms_norm": found["rms_norm"], "tie_embeddings": found["tie_embeddings"]}
    pairs = [(key, said[key], value) for key, value in told.items() if key in said]
    pairs += [(f"ssm_cfg.{key}", said_ssm[key], ssm[key]) for key in ssm if key in said_ssm]
    if "conv_bias" in said_ssm and "backbone.layers.0.mixer.conv1d.bias" in weights:
        pairs.append(("ssm_cfg.conv_bias", said_ssm["conv_bias"], True))
    for key, wrong, right in pairs:
        if wrong != right and not (key == "ssm_cfg.dt_rank" and wrong == the_rank(config)):
            yield f"{where}: says {key} = {str(wrong)[:60]}, but by the weights it is {right}; the weights decide"
    for key in said_ssm:
        if key not in ssm and key not in _SILENT:
            yield f"{where}: ssm_cfg.{key[:60]} is ignored: it is no argument of mamba-ssm's Mamba layer"
    if "pad_id" in data:
        yield f"{where}: pad_id = {str(data['pad_id'])[:60]} is ignored: every byte is a token of its own here"


def the_rank(config: ByteLMConfig) -> int:
    """R, the rank of dt in every layer."""
    mamba = the_mamba(config)
    assert mamba is not None
    return mamba.rank(config.d_model)


def config_json(config: ByteLMConfig) -> dict[str, Any]:
    """The config.json that mamba-ssm's MambaLMHeadModel.from_pretrained reads as `config`."""
    mamba = the_mamba(config)
    assert mamba is not None, "why_not was asked first"
    return {
        "d_model": config.d_model,
        "n_layer": len(config.pattern),
        "vocab_size": config.vocab_size,
        "ssm_cfg": {
            "d_state": mamba.d_state,
            "d_conv": mamba.d_conv,
            "expand": mamba.expand,
            "dt_rank": mamba.dt_rank or "auto",
            "bias": mamba.bias,
        },
        "rms_norm": config.norm.kind == "rms",
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": _PADDED_TO if config.vocab_size % _PADDED_TO == 0 else 1,
        "tie_embeddings": config.tied_head,
    }


def writers(
    config: ByteLMConfig,
    tensors: Mapping[str, Tensor],
    trained: torch.dtype | None,  # noqa: ARG001
) -> dict[str, Writer]:
    """The files of such a folder; see `Layout.writers`. A tied head is stored once and named twice.

    There is no room for `trained`: mamba-ssm refuses a config.json with a key that it does not know.
    """
    stored: dict[str, Tensor] = {}
    for name in sorted(tensors, key=_place):
        place = mamba_name(name, "embedding")
        stored[place] = _alone(tensors[name].reshape(stored_shape(place, tuple(tensors[name].shape))))
    if config.tied_head:
        stored[HEAD] = stored[EMBEDDING]

    def write(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(stored, file)

    return {PICKLE: write, CONFIG: json_writer(config_json(config))}


def _place(name: str) -> tuple[int, ...]:
    """Sort key: embedding; layers in order, each mixer before its norm; last norm; head. Weight before bias."""
    part, *rest = name.split(".")
    if part != "layers":
        return (_PARTS.index(part), "weight bias".find(rest[-1]))
    index, inner, *rest = rest
    place = _MIXER.index(rest[0]) if inner == "layer" else len(_MIXER)
    return (_PARTS.index(part), int(index), place, "weight bias".find(rest[-1]))


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in a storage of its own: torch.save writes whole storages, and a mapped file is one."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
