"""Other packages' ops and models as contestants: those that can be imported here, with our layout and our weights.

On a GPU mamba-ssm and causal-conv1d (https://github.com/state-spaces/mamba), on a CPU transformers' Mamba, with mambapy
where it is installed: transformers' own loop is quadratic in the length when it is differentiated.
"""

import functools
import importlib.util
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mambabyte.benchmarking.operators import Contestant
from mambabyte.checkpoints import hf_layout, mamba_ssm_layout
from mambabyte.checkpoints.layout import mamba_name, stored_shape
from mambabyte.models import ByteLM

MAMBA_SSM, MAMBAPY, TRANSFORMERS = "mamba-ssm", "transformers + mambapy", "transformers"


def present(*modules: str) -> bool:
    """Whether all of these can be found; nothing is imported."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def scans(device: torch.device) -> dict[str, Contestant]:
    """Selective scans with softplus, D and gate, by name."""
    if device.type == "cuda":
        if not present("mamba_ssm", "selective_scan_cuda"):
            return {}
        return {MAMBA_SSM: Contestant(channels_first(_mamba_ssm_scan), time_last=True)}
    if not present("transformers"):
        return {}
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    loop = Contestant(_widened(channels_first(mamba_selective_scan)), time_last=True, backward=False)
    if not present("mambapy"):
        return {TRANSFORMERS: loop}
    parallel = _widened(channels_first(mamba_selective_scan, use_mambapy=True))
    return {MAMBAPY: Contestant(parallel, time_last=True), TRANSFORMERS: loop}


def _mamba_ssm_scan(*tensors: Tensor | None, delta_softplus: bool) -> Tensor:
    scan = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return cast("Tensor", scan(*tensors, delta_softplus=delta_softplus))


def channels_first(scan: Callable[..., Tensor], **options: bool) -> Callable[..., Tensor]:
    """A scan over (batch, channels, length) as one over (batch, length, channels)."""

    def run(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = True,
    ) -> Tensor:
        gate = None if z is None else z.mT
        return scan(x.mT, dt.mT, A, B.mT, C.mT, D, gate, dt_bias, delta_softplus=dt_softplus, **options).mT

    return run


def _widened(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scan that takes float32 only, for tensors of any dtype."""
    return lambda x, **case: scan(
        x=x.float(), **{name: t.float() if isinstance(t, Tensor) else t for name, t in case.items()}
    ).to(x.dtype)


def convolutions(device: torch.device) -> dict[str, Contestant]:
    """Causal convolutions with bias and SiLU, by name; causal-conv1d has kernels for either layout."""
    if device.type != "cuda":
        return {"torch conv1d": Contestant(_torch_conv, time_last=True)}
    if not present("causal_conv1d", "causal_conv1d_cuda"):
        return {}
    time_last = Contestant(_causal_conv1d, time_last=True)
    return {"causal-conv1d": time_last, "causal-conv1d, channels last": Contestant(_causal_conv1d)}


def _causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    convolve = import_module("causal_conv1d").causal_conv1d_fn
    return cast("Tensor", convolve(x.mT, weight, bias, activation="silu").mT)


def _torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels, width = weight.shape
    taps = weight.to(x.dtype)[:, None]
    y = F.conv1d(x.mT, taps, bias.to(x.dtype), padding=width - 1, groups=channels)
    return F.silu(y[..., : x.shape[1]]).mT


def models(ours: ByteLM) -> dict[str, Callable[[], nn.Module]]:
    """By name, what builds a peer's model with the weights of ours: from ids (batch, length) to an output's `.logits`.

    Empty where no peer is installed or can express the architecture.
    """
    if ours.embedding.weight.device.type == "cuda":
        usable = present("mamba_ssm", "selective_scan_cuda") and mamba_ssm_layout.why_not(ours.config) is None
        return {MAMBA_SSM: functools.partial(_mamba_ssm, ours)} if usable else {}
    usable = present("transformers", "mambapy") and hf_layout.why_not(ours.config) is None
    return {MAMBAPY: functools.partial(transformers, ours)} if usable else {}


def transformers(ours: ByteLM) -> nn.Module:
    """MambaForCausalLM, on mambapy's scan when it trains, with the weights of ours, which `hf_layout` can express."""
    from transformers import MambaConfig, MambaForCausalLM

    described = hf_layout.config_json(ours.config, torch.float32)
    config = MambaConfig(**{k: v for k, v in described.items() if k != "model_type"}, use_mambapy=True)
    return _with_weights(MambaForCausalLM(config), ours, "embeddings")


def _mamba_ssm(ours: ByteLM) -> nn.Module:
    MambaConfig = import_module("mamba_ssm.models.config_mamba").MambaConfig
    MambaLMHeadModel = import_module("mamba_ssm.models.mixer_seq_simple").MambaLMHeadModel
    config = MambaConfig(**mamba_ssm_layout.config_json(ours.config))
    return _with_weights(MambaLMHeadModel(config, device=ours.embedding.weight.device), ours, "embedding")


def _with_weights(peer: Any, ours: ByteLM, word: str) -> nn.Module:
    """The peer with our values; `word` is its name of the embedding table."""
    stored = {mamba_name(name, word): tensor for name, tensor in ours.state_dict().items()}
    peer.load_state_dict({name: t.reshape(stored_shape(name, tuple(t.shape))) for name, t in stored.items()})
    return peer
