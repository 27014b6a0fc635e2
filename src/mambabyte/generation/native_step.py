"""An engine for CPUs: one native call for each read, with weights in float32, bfloat16 or int8.

Only matrices are narrowed, and with int8 what they multiply is rounded to 16 bits. Norms, convolution, the scan, its
parameters and every state stay float32.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mambabyte.generation.engine import why_unequal
from mambabyte.generation.native_ir import Layout, Plan, Sizes, step
from mambabyte.generation.native_weights import KINDS
from mambabyte.generation.slots import Slots, by_row
from mambabyte.layers import State
from mambabyte.layers.mamba import Mamba, MambaState
from mambabyte.models import ByteLM, ByteLMState
from mambabyte.models.byte_lm import BYTES
from mambabyte.ops.crew import Task, TeamKernel
from mambabyte.ops.native import CORES
from mambabyte.ops.panels import block, unblock
from mambabyte.ops.target import host_target
from mambabyte.ops.vector_math import LOG2E

Weights = Literal["float32", "bfloat16", "int8"]
FIRST_SLOTS = 8
# Columns of one call: bounds the work space of a long read.
COLUMNS = 64
# Weights from which a second thread pays: twice the speed at 5 MB, nothing at 1 MB (docs/log.md).
SHARED_BYTES = 4 << 20


def why_not(model: ByteLM) -> str | None:
    """Why a model cannot be run by `NativeEngine`, or None."""
    reason = why_unequal(model)
    if reason is not None:
        return reason
    if model.embedding.weight.device.type != "cpu":
        return f"it is on {model.embedding.weight.device.type}"
    if sys.byteorder != "little":
        return "its weights lie as on a CPU with little-endian words"
    if torch.float64 in (model.compute_dtype, model.embedding.weight.dtype):
        return "it computes in float64"
    return None


class NativeEngine:
    """`mambabyte.generation.engine.Engine` for a model of Mamba layers of one size, on the CPU.

    Weights are copied when the engine is made. `weights` "bfloat16" rounds matrices; "int8" rounds each row of a matrix
    to 255 levels of its own scale, and each vector that is multiplied to 65,535. A read of several bytes gives the same
    bits as as many reads of one byte, so its tolerance is 0, but fetches each weight once. `threads` None is one, or
    two where a byte reads more weights than a core's cache holds; the bits are the same for any number.

    Raises ValueError for a model that `why_not` refuses.
    """

    name = "native"
    tolerance = 0.0
    at_once = COLUMNS

    def __init__(
        self, model: ByteLM, *, weights: Weights = "float32", threads: int | None = None, outputs: int = BYTES
    ) -> None:
        reason = why_not(model)
        if reason is not None:
            raise ValueError(f"the native engine cannot run this model: {reason}")
        if weights not in KINDS:
            raise ValueError(f"weights={weights!r} is not one of {', '.join(KINDS)}")
        self.model, self.outputs = model, outputs
        self.weights: str = weights
        kernel, self._plan, buffers = _pack(model, weights)
        if threads is None:
            threads = min(2, torch.get_num_threads()) if buffers["matrices"].nbytes > SHARED_BYTES else 1
        self.threads = max(1, min(threads, CORES))
        self._layers = len(model.layers)
        self._slots = Slots(FIRST_SLOTS)
        self._states = torch.zeros(FIRST_SLOTS, self._layers * self._plan.state.size)
        work, own = (
            torch.zeros(n, COLUMNS, part.size) for n, part in ((1, self._plan.work), (self.threads, self._plan.own))
        )
        columns = torch.zeros(3, COLUMNS, dtype=torch.int64)
        self._columns = columns.numpy()
        start = self._plan.work["logits"]
        self._logits = work.numpy()[0, :, start : start + min(model.config.vocab_size, outputs)]
        ids, before, after = columns
        self._task = Task(
            kernel, work=work, own=own, states=self._states, ids=ids, before=before, after=after, columns=0,
            layers=self._layers, **buffers,
        )  # fmt: skip

    def join(self, state: ByteLMState) -> int:
        """See `Engine.join`."""
        assert state.batch == 1, f"a row is one sequence, got a state of {state.batch}"
        row = self._slots.join()
        self._grow()
        self._states[self._slots.of(row)] = torch.cat([self._pack_layer(layer) for layer in state.layers])
        return row

    def fork(self, row: int) -> int:
        """See `Engine.fork`."""
        return self._slots.fork(row)

    def read(self, rows: Sequence[int], data: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Engine.read`."""
        columns = np.array(self._slots.read(rows, data, self._plan.sizes.V))
        if not rows:
            return []
        self._grow()
        count = columns.shape[1]
        if count <= COLUMNS:
            logits = self._run(columns)
        else:
            logits = np.concatenate([self._run(columns[:, i : i + COLUMNS]).copy() for i in range(0, count, COLUMNS)])
        return by_row(logits, data)

    def _run(self, columns: np.ndarray) -> np.ndarray:
        """The logits after columns (ids, slots before, slots after), in memory that the next run overwrites."""
        count = columns.shape[1]
        self._columns[:, :count] = columns
        self._task.set(columns=count)
        self._task.run(self.threads)
        return self._logits[:count]

    def rewind(self, row: int, count: int) -> None:
        """See `Engine.rewind`."""
        self._slots.rewind(row, count)

    def state(self, row: int) -> ByteLMState:
        """See `Engine.state`."""
        layers = self._states[self._slots.of(row)].view(self._layers, self._plan.state.size)
        return ByteLMState(tuple(self._unpack_layer(layer) for layer in layers))

    def leave(self, row: int) -> None:
        """See `Engine.leave`."""
        self._slots.leave(row)

    def _grow(self) -> None:
        more = self._slots.count - len(self._states)
        if more:
            self._states = torch.cat([self._states, self._states.new_zeros(more, self._states.shape[1])])
            self._task.set(states=self._states)

    def _pack_layer(self, state: State) -> Tensor:
        assert isinstance(state, MambaState)
        return _fill(self._plan.state, {"ssm": block(state.ssm), "conv": block(state.conv.transpose(1, 2))})

    def _unpack_layer(self, packed: Tensor) -> MambaState:
        s, lanes, blocks = self._plan.sizes, self._plan.lanes, self._plan.blocks["E"]
        ssm, conv = torch.split(packed, list(self._plan.state.sizes.values()))
        taps = unblock(conv.view(1, blocks, s.W - 1, lanes), s.E).transpose(1, 2)
        # float32 even if the model computes in bfloat16: rounding here would make a joined copy differ from its row
        return MambaState(taps.contiguous(), unblock(ssm.view(1, blocks, s.N, lanes), s.E))


def _sizes(model: ByteLM, weights: Weights) -> Sizes:
    layer, norm = next(iter(model.units())).layer, model.config.norm
    E, N = layer.A_log.shape
    return Sizes(
        D=model.config.d_model,
        E=E,
        N=N,
        R=layer.dt_proj.in_features,
        W=layer.config.d_conv,
        V=model.config.vocab_size,
        layer_norm=norm.kind == "layer",
        norm_bias=norm.bias,
        eps=norm.eps,
        weights=weights,
    )


@functools.lru_cache(maxsize=16)
def _compiled(sizes: Sizes) -> TeamKernel:
    return TeamKernel(step(host_target(), sizes))


Packed = tuple[TeamKernel, Plan, dict[str, Tensor]]


@torch.no_grad()
def _pack(model: ByteLM, weights: Weights) -> Packed:
    """The kernel for a model, where its data lies, and that data."""
    sizes = _sizes(model, weights)
    plan = Plan(sizes, host_target().lanes)
    matrices: list[Tensor] = []
    parameters: list[Tensor] = []

    def stored(name: str, matrix: Tensor) -> dict[str, Tensor]:
        words, of_rows = _store(plan, name, matrix)
        matrices.append(words)
        return {f"{name}_{what}": values for what, values in of_rows.items()}

    for unit in model.units():
        values = _parameters(unit.layer)
        for name, matrix in _matrices(unit.layer, sizes).items():
            values |= stored(name, matrix)
        parameters.append(_fill(plan.parameters, values | {"norm": unit.norm.weight, "norm_bias": unit.norm.bias}))
    values = stored("head", model.head.weight)
    parameters.append(_fill(plan.final, values | {"norm": model.norm.weight, "norm_bias": model.norm.bias}))
    width = plan.blocks["D"] * plan.lanes
    embedding = torch.zeros(sizes.V, width)
    embedding[:, : sizes.D] = model.embedding.weight
    valid = (torch.arange(width) < sizes.D).float()
    buffers = {
        "matrices": torch.cat(matrices),
        "parameters": torch.cat(parameters),
        "embedding": embedding,
        "valid": valid,
    }
    return _compiled(sizes), plan, buffers


def _matrices(layer: Mamba, sizes: Sizes) -> dict[str, Tensor]:
    """In the plan's order."""
    in_x, in_z = torch.split(layer.in_proj.weight, sizes.E)
    return {
        "in_x": in_x,
        "in_z": in_z,
        "select": layer.x_proj.weight,
        "dt": layer.dt_proj.weight,
        "out": layer.out_proj.weight,
    }


def _parameters(layer: Mamba) -> dict[str, Tensor]:
    return {
        "conv": block(layer.conv_weight[None]),
        "conv_bias": layer.conv_bias,
        "dt_bias": layer.dt_bias,
        "A": block(-layer.A_log.float().exp()[None] * LOG2E),
        "skip": layer.D,
    }


def _store(plan: Plan, name: str, matrix: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The words of a matrix (outputs, inputs) in the order in which they are read, and parameters of its outputs."""
    outputs, inputs = plan.matrices[name]
    groups, group = plan.groups[outputs], plan.group[outputs]
    padded = torch.zeros(groups * group * plan.lanes, inputs)
    padded[: len(matrix)] = matrix
    words, of_rows = plan.kind.store(padded, inputs)
    return words.view(groups, group, plan.lanes, -1).permute(0, 3, 1, 2).flatten(), of_rows


def _fill(layout: Layout, values: dict[str, Tensor | None]) -> Tensor:
    """The values in their regions, zero where a region is longer or its value is None."""
    filled = torch.zeros(layout.size)
    for name, value in values.items():
        if value is not None:
            filled[layout[name] : layout[name] + value.numel()] = value.flatten().float()
    return filled
