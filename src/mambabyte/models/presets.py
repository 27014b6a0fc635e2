"""Which order of layers? Presets: named architectures, data only.

The four large ones are the paper's (https://arxiv.org/abs/2401.13660) and its released weights: LayerNorm with bias,
which its code trained whatever its configs said, and a head of its own. `mambabyte-374m` is what was released under the
name 353M. The small ones are ours, for a CPU and for short runs.
"""

from mambabyte.config import unknown
from mambabyte.layers import MambaConfig, NormConfig
from mambabyte.models.byte_lm import ByteLMConfig

RMS_NORM = NormConfig()
LAYER_NORM = NormConfig(kind="layer", bias=True)


def mambabyte(d_model: int, n_layers: int, *, norm: NormConfig = RMS_NORM) -> ByteLMConfig:
    """A stack of `n_layers` Mamba layers of width `d_model` with an untied head."""
    pattern = ("mamba",) * n_layers
    return ByteLMConfig(d_model=d_model, layers={"mamba": MambaConfig()}, pattern=pattern, norm=norm)


PRESETS: dict[str, ByteLMConfig] = {
    "mambabyte-tiny": mambabyte(128, 4),
    "mambabyte-2m": mambabyte(256, 4),
    "mambabyte-5m": mambabyte(384, 5),
    "mambabyte-14m": mambabyte(512, 8),
    "mambabyte-27m": mambabyte(512, 16),
    "mambabyte-110m": mambabyte(768, 29),
    "mambabyte-353m": mambabyte(1024, 53, norm=LAYER_NORM),
    "mambabyte-374m": mambabyte(1024, 56, norm=LAYER_NORM),
    "mambabyte-972m": mambabyte(1792, 48, norm=LAYER_NORM),
    "mambabyte-1.6b": mambabyte(2304, 48, norm=LAYER_NORM),
}


def preset(name: str) -> ByteLMConfig:
    """The config of a preset. Raises ValueError, listing the presets, for an unknown name."""
    if name not in PRESETS:
        raise ValueError(unknown("preset", name, PRESETS))
    return PRESETS[name]
