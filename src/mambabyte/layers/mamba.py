"""The Mamba layer: gated selective state space (https://arxiv.org/abs/2312.00752, section 3.4 and figure 3).

Letters: B batch, L length, D model width, E inner width, N states, W conv width, R rank of dt.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mambabyte import ops
from mambabyte.config import kind
from mambabyte.layers import initialisation
from mambabyte.layers.linear import Linear
from mambabyte.layers.registry import LayerConfig
from mambabyte.layers.state import State


@kind(LayerConfig, "mamba")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig(LayerConfig):
    """Sizes of a Mamba layer; `dt_rank` None is ceil(width / 16); `bias` adds one to in_proj and one to out_proj."""

    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("d_state", "d_conv", "expand", "dt_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"mamba layer: {name} must be at least 1, got {value}")

    def inner(self, d_model: int) -> int:
        """E, the width inside the layer."""
        return self.expand * d_model

    def rank(self, d_model: int) -> int:
        """R, the rank of the map that gives dt."""
        return self.dt_rank or math.ceil(d_model / 16)

    def build(self, d_model: int, n_layers: int) -> "Mamba":
        """A freshly initialised layer."""
        return Mamba(d_model, self, n_layers)


@dataclasses.dataclass(frozen=True)
class MambaState(State):
    """conv (B, W-1, E), the last inputs of the convolution; ssm (B, E, N) float32, the recurrent state h."""

    conv: Tensor
    ssm: Tensor


class Mamba(nn.Module):
    """x (B,L,D) -> y (B,L,D): in-projection, causal convolution, selective scan, gate, out-projection."""

    def __init__(self, d_model: int, config: MambaConfig, n_layers: int = 1) -> None:
        super().__init__()
        E, N, R, W = config.inner(d_model), config.d_state, config.rank(d_model), config.d_conv
        self.config = config
        self.in_proj = Linear(d_model, 2 * E, bias=config.bias)
        self.conv_weight = nn.Parameter(torch.empty(E, W))
        self.conv_bias = nn.Parameter(torch.empty(E))
        self.x_proj = Linear(E, R + 2 * N, bias=False)
        self.dt_proj = Linear(R, E, bias=False)
        self.dt_bias = nn.Parameter(initialisation.step_bias(E))
        self.A_log = nn.Parameter(initialisation.decay(E, N))
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = Linear(E, d_model, bias=config.bias)
        self._initialise(n_layers)

    def _initialise(self, n_layers: int) -> None:
        initialisation.uniform_fan_in(self.in_proj.weight)
        initialisation.uniform_fan_in(self.conv_weight)
        initialisation.uniform_fan_in(self.conv_bias, fan_in=self.config.d_conv)
        initialisation.uniform_fan_in(self.x_proj.weight)
        initialisation.uniform_fan_in(self.dt_proj.weight)
        initialisation.uniform_fan_in(self.out_proj.weight, gain=n_layers**-0.5)
        if self.config.bias:
            initialisation.zero(self.in_proj.bias)
            initialisation.zero(self.out_proj.bias)

    def forward(
        self, x_BLD: Tensor, state: MambaState | None = None, *, resets: Tensor | None = None
    ) -> tuple[Tensor, MambaState]:
        """y (B,L,D) in x's dtype and the state after the last position."""
        xz_BLE = self.in_proj(x_BLD)
        conv, ssm = (None, None) if state is None else (state.conv, state.ssm)
        if self._plain():
            y_BLD, conv, ssm = ops.mixer(
                xz_BLE,
                self.conv_weight,
                self.conv_bias,
                self.x_proj.weight,
                self.dt_proj.weight,
                self._A(),
                self.D,
                self.dt_bias,
                self.out_proj.weight,
                conv_state=conv,
                state=ssm,
                resets=resets,
            )
            return y_BLD, MambaState(conv, ssm)
        x_BLE, z_BLE = xz_BLE.chunk(2, dim=-1)
        x_BLE, conv = ops.causal_conv(x_BLE, self.conv_weight, self.conv_bias, initial_state=conv, resets=resets)
        dt_BLE, B_BLN, C_BLN = self._select(x_BLE)
        y_BLE, ssm = ops.selective_scan(
            *(x_BLE, dt_BLE, self._A(), B_BLN, C_BLN, self.D, z_BLE),
            dt_bias=self.dt_bias,
            initial_state=ssm,
            resets=resets,
        )
        return self.out_proj(y_BLE), MambaState(conv, ssm)

    def step_(self, x_BD: Tensor, state: MambaState) -> Tensor:
        """One position without autograd: returns y (B,D) and updates `state` in place."""
        x_BE, z_BE = self.in_proj(x_BD).chunk(2, dim=-1)
        x_BE = ops.causal_conv_step(state.conv, x_BE, self.conv_weight, self.conv_bias)
        dt_BE, B_BN, C_BN = self._select(x_BE)
        y_BE = ops.selective_scan_step(
            state.ssm, x_BE, dt_BE, self._A(), B_BN, C_BN, self.D, z_BE, dt_bias=self.dt_bias
        )
        return self.out_proj(y_BE)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """Zeros: nothing read yet."""
        E, N = self.A_log.shape
        conv = torch.zeros(batch, self.config.d_conv - 1, E, device=device, dtype=dtype)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        return MambaState(conv, torch.zeros(batch, E, N, device=device, dtype=compute))

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input-dependent dt (before bias and softplus), B and C of the scan."""
        N = self.config.d_state
        rank, B, C = self.x_proj(x).split([self.dt_proj.in_features, N, N], dim=-1)
        return self.dt_proj(rank), B, C

    def _plain(self) -> bool:
        """Whether `ops.mixer` computes what the projections do: out_proj has no bias, and they are ours, not wrapped or
        replaced from outside (by an adapter, say)."""
        ours = all(type(layer) is Linear for layer in (self.x_proj, self.dt_proj, self.out_proj))
        return ours and not self.config.bias

    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Mamba":
        """Keep A_log, D and the dt bias float32 when the module is cast to a half precision: the decay is exp(dt A)
        raised to the length of the memory, and eight bits of mantissa lose it."""
        kept = (self.A_log, self.D, self.dt_bias)

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = moved.dtype in (torch.bfloat16, torch.float16)
            return tensor.to(moved.device) if half and any(tensor is k for k in kept) else moved

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self
