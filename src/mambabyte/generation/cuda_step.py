"""An engine for NVIDIA GPUs: a read of a few bytes is one launch, and one of many bytes is one CUDA graph.

Matrices and activations are bfloat16 or float16; the residual stream, the scan's parameters and every state are
float32. A column's results do not depend on the columns beside it, to the last bit (see ops/decode/parts.cuh).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mambabyte.generation.engine import Ids, Logits, why_unequal
from mambabyte.generation.slots import Columns, Slots, by_row
from mambabyte.layers.mamba import MambaState
from mambabyte.models import ByteLM, ByteLMState
from mambabyte.models.byte_lm import BYTES
from mambabyte.ops import nvrtc
from mambabyte.ops.decode import persistent
from mambabyte.ops.decode.pack import LayerWeights, Weights, pack
from mambabyte.ops.decode.sizes import Sizes
from mambabyte.ops.decode.wide import Wide, begins

FIRST_SLOTS = 32
SCRATCH = 0  # the slot of columns that belong to no row
# Launches of the persistent kernel that cost as much as a graph of the wide ones.
PIECES = 2
MOST_WIDE = 1024  # columns of one graph


def why_not(model: ByteLM) -> str | None:
    """Why a model cannot be run by `CudaEngine`, or None."""
    weight = model.embedding.weight
    reason = why_unequal(model) or nvrtc.why_not(weight)
    if reason is not None:
        return reason
    if next(iter(model.units())).layer.config.d_conv < 2:
        return "its convolution has one tap"
    major, minor = torch.cuda.get_device_capability(weight.device)
    if major < 9:
        return f"its kernels need compute capability 9.0, this GPU has {major}.{minor}"
    sizes = sizes_of(model, torch.bfloat16)
    if not persistent.Cut.of(sizes, *nvrtc.hardware(weight.device), columns=1).fits:
        return "its layers are too wide for the kernels"
    return None


class CudaEngine:
    """`mambabyte.generation.engine.Engine` for a model of Mamba layers of one size, on an NVIDIA GPU.

    Weights are copied when the engine is made, to `dtype`: None is the dtype that the model computes in. A read of
    several bytes gives the same bits as as many reads of one byte, so its tolerance is 0.

    Raises ValueError for a model that `why_not` refuses, and for a dtype other than bfloat16 and float16.
    """

    name = "cuda"
    tolerance = 0.0
    at_once = persistent.CAPACITIES[-1]

    def __init__(self, model: ByteLM, *, dtype: torch.dtype | None = None, outputs: int = BYTES) -> None:
        reason = why_not(model)
        if reason is not None:
            raise ValueError(f"the CUDA engine cannot run this model: {reason}")
        dtype = dtype or model.compute_dtype or model.embedding.weight.dtype
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"the CUDA engine computes in bfloat16 or float16, not {dtype}: give it a dtype")
        self.model, self.outputs = model, min(outputs, model.config.vocab_size)
        self.weights = str(dtype).removeprefix("torch.")
        self._device = model.embedding.weight.device
        self._sizes = sizes_of(model, dtype)
        self._weights = weights_of(model, self._sizes)
        self._slots = Slots(FIRST_SLOTS, reserved=SCRATCH + 1)
        s = self._sizes
        self._ssm = torch.zeros(FIRST_SLOTS, s.layers, s.E, s.N_pitch, device=self._device)
        self._conv = torch.zeros(FIRST_SLOTS, s.layers, s.E, s.W - 1, device=self._device)
        self._few = [_Few(s, self._device, columns, self.outputs) for columns in _capacities(s, self._device)]
        self._many: dict[int, _Many] = {}

    def join(self, state: ByteLMState) -> int:
        """See `Engine.join`."""
        assert state.batch == 1, f"a row is one sequence, got a state of {state.batch}"
        row = self._slots.join()
        self._grow()
        slot = self._slots.of(row)
        layers = cast(tuple[MambaState, ...], state.layers)
        self._ssm[slot, :, :, : self._sizes.N] = torch.stack([layer.ssm[0] for layer in layers])
        self._conv[slot] = torch.stack([layer.conv[0] for layer in layers]).transpose(1, 2)
        return row

    def fork(self, row: int) -> int:
        """See `Engine.fork`."""
        return self._slots.fork(row)

    def read(self, rows: Sequence[int], data: Sequence[Ids]) -> list[Logits]:
        """See `Engine.read`."""
        columns = self._slots.read(rows, data, self.model.config.vocab_size)
        if not rows:
            return []
        self._grow()
        with torch.cuda.device(self._device):
            return by_row(self._run(columns), data)

    def _run(self, columns: Columns) -> Logits:
        count, most = len(columns.ids), self._few[-1].columns
        many = self._many_for(min(count, MOST_WIDE)) if count > PIECES * most else None
        runs: _Few | _Many
        if many is not None and many.fits:
            runs, step = many, MOST_WIDE
        else:
            runs = next((few for few in self._few if few.columns >= count), self._few[-1])
            step = runs.columns
        states = self._weights, self._ssm, self._conv
        if count <= step:
            return runs.run(columns, *states)
        logits = np.empty((count, self.outputs), np.float32)
        for start in range(0, count, step):
            piece = slice(start, start + step)
            logits[piece] = runs.run(Columns(*(each[piece] for each in columns)), *states)
        return logits

    def _many_for(self, columns: int) -> _Many:
        size = 1 << (columns - 1).bit_length()
        if size not in self._many:
            self._many[size] = _Many(self._sizes, size, self.outputs, self._device)
        return self._many[size]

    def rewind(self, row: int, count: int) -> None:
        """See `Engine.rewind`."""
        self._slots.rewind(row, count)

    def state(self, row: int) -> ByteLMState:
        """See `Engine.state`."""
        slot, dtype = self._slots.of(row), self.model.compute_dtype or self.model.embedding.weight.dtype
        conv = self._conv[slot].transpose(1, 2).to(dtype)
        ssm = self._ssm[slot, :, :, : self._sizes.N]
        return ByteLMState(
            tuple(
                MambaState(c.contiguous(), h.clone())
                for c, h in zip(torch.split(conv, 1), torch.split(ssm, 1), strict=True)
            )
        )

    def leave(self, row: int) -> None:
        """See `Engine.leave`."""
        self._slots.leave(row)

    def _grow(self) -> None:
        more = self._slots.count - len(self._ssm)
        if more:
            self._ssm, self._conv = (torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in (self._ssm, self._conv))


class _Few:
    """At most so many columns in one launch of the persistent kernel, whose logits arrive in the host's memory."""

    def __init__(self, sizes: Sizes, device: torch.device, columns: int, outputs: int) -> None:
        self.columns = columns
        self._cut = persistent.Cut.of(sizes, *nvrtc.hardware(device), columns=columns)
        self._kernel = nvrtc.get(persistent.SOURCES, persistent.KERNEL, **self._cut.defines)
        self._mail = persistent.Mail(sizes, columns, device)
        self._model: persistent.Model | None = None
        self._logits = torch.zeros(columns, outputs, pin_memory=True)
        self._read = self._logits.numpy()

    def run(self, columns: Columns, weights: Weights, ssm: Tensor, conv: Tensor) -> Logits:
        """The logits after each column, in memory that the next run overwrites."""
        if self._model is None or self._model.ssm != ssm.data_ptr():
            self._model = persistent.model(weights, self._mail, ssm, conv, self._logits, self._cut.sizes.layers)
        batch, tag = persistent.batch(*columns, capacity=self.columns), self._mail.next_tag()
        self._kernel.together(self._cut.blocks, persistent.THREADS, self._model, batch, tag, shared=self._cut.shared)
        torch.cuda.current_stream().synchronize()
        return self._read[: len(columns.ids)]


class _Many:
    """At most so many columns by the wide kernels; the graph is captured again when the states have moved."""

    def __init__(self, sizes: Sizes, columns: int, outputs: int, device: torch.device) -> None:
        warpgroups = nvrtc.architecture(device) == nvrtc.WARPGROUPS
        self._wide = Wide(sizes, columns, outputs, device, warpgroups=warpgroups)
        _, shared = nvrtc.hardware(device)
        self.fits = max(self._wide.shared.values()) <= shared  # not with hundreds of states, or on a small GPU
        self._batch = torch.zeros(self._wide.batch.shape, dtype=torch.int32, pin_memory=True)
        self._filled = self._batch.numpy().reshape(3, -1)  # id, begin and after of each column
        self._logits = torch.zeros(columns, outputs, pin_memory=True)
        self._read = self._logits.numpy()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._states = 0

    def run(self, columns: Columns, weights: Weights, ssm: Tensor, conv: Tensor) -> Logits:
        """The logits after each column, in memory that the next run overwrites."""
        if self._graph is None or self._states != ssm.data_ptr():
            self._graph, self._states = self._capture(weights, ssm, conv), ssm.data_ptr()
        self._fill(columns)
        self._graph.replay()
        self._logits.copy_(self._wide.logits, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._read[: len(columns.ids)]

    def _fill(self, columns: Columns) -> None:
        """The rest of the columns read and write the scratch slot, each by itself."""
        count = len(columns.ids)
        self._filled[:, :count] = columns.ids, begins(columns.before, columns.after), columns.after
        self._filled[:, count:] = [[0], [SCRATCH], [SCRATCH]]
        self._wide.batch.copy_(self._batch, non_blocking=True)

    def _capture(self, weights: Weights, ssm: Tensor, conv: Tensor) -> torch.cuda.CUDAGraph:
        self._fill(Columns([], [], []))
        self._wide.run(weights, ssm, conv)  # compiles and loads, which a capture cannot
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._wide.run(weights, ssm, conv)
        return graph


def _capacities(sizes: Sizes, device: torch.device) -> list[int]:
    """Columns of the persistent kernel's versions: those that fit, fewest first."""
    hardware = nvrtc.hardware(device)
    return [n for n in persistent.CAPACITIES if persistent.Cut.of(sizes, *hardware, columns=n).fits]


def sizes_of(model: ByteLM, dtype: torch.dtype) -> Sizes:
    """What the kernels are compiled for."""
    layer, norm = next(iter(model.units())).layer, model.config.norm
    E, N = layer.A_log.shape
    return Sizes(
        D=model.config.d_model,
        E=E,
        N=N,
        R=layer.dt_proj.in_features,
        W=layer.config.d_conv,
        V=model.config.vocab_size,
        layers=len(model.layers),
        layer_norm=norm.kind == "layer",
        norm_bias=norm.bias,
        eps=norm.eps,
        dtype=dtype,
    )


@torch.no_grad()
def weights_of(model: ByteLM, sizes: Sizes) -> Weights:
    """Copies of the model's weights for the kernels."""
    layers = [
        LayerWeights(
            norm=unit.norm.weight,
            norm_bias=unit.norm.bias,
            in_proj=unit.layer.in_proj.weight,
            conv_weight=unit.layer.conv_weight,
            conv_bias=unit.layer.conv_bias,
            x_proj=unit.layer.x_proj.weight,
            dt_proj=unit.layer.dt_proj.weight,
            dt_bias=unit.layer.dt_bias,
            A=-unit.layer.A_log.float().exp(),
            D=unit.layer.D,
            out_proj=unit.layer.out_proj.weight,
        )
        for unit in model.units()
    ]
    return pack(sizes, layers, model.norm.weight, model.norm.bias, model.embedding.weight, model.head.weight)
