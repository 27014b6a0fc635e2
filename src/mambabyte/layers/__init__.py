"""Layers: maps (x, state) -> (y, state), their states, and their initial values."""

from mambabyte.layers.mamba import Mamba as Mamba
from mambabyte.layers.mamba import MambaConfig as MambaConfig
from mambabyte.layers.mamba import MambaState as MambaState
from mambabyte.layers.norm import Norm as Norm
from mambabyte.layers.norm import NormConfig as NormConfig
from mambabyte.layers.registry import Layer as Layer
from mambabyte.layers.registry import LayerConfig as LayerConfig
from mambabyte.layers.state import State as State
