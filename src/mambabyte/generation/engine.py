"""The engine: runs many sequences as rows that join and leave between calls, each exactly as if it were alone.

An engine owns the state of its rows. It knows nothing of sampling, stops or text: it reads bytes and gives logits.
`TorchEngine` works for every model on every device; a faster engine (one native call a byte, a CUDA graph) implements
the same methods and is returned by `open_engine` where it can serve the model.
"""

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mambabyte.models import ByteLM, ByteLMState
from mambabyte.models.byte_lm import BYTES
from mambabyte.models.context import Context

if TYPE_CHECKING:
    from mambabyte.generation.native_step import Weights

logger = logging.getLogger("mambabyte")

Logits = NDArray[np.float32]

PREFILL_CHUNK = 4096  # bytes read by one scan: bounds the memory of a long prompt

Ids: TypeAlias = Sequence[int]  # `bytes` are the ids of a byte model; a drafter's model may have other ids


class Engine(Protocol):
    """Rows of running sequences.

    The law: what a row returns depends on its own state and bytes only, to the last bit, not on the other rows of a
    call, on their number, or on the rows that came before it.

    `tolerance` bounds how far the logits of one read of several bytes may lie from those of as many reads of one byte,
    as a fraction of the largest logit: 0 if both are equal to the last bit. `outputs` is the number of ids whose logits
    are returned: 256, for ids above are no bytes and never emitted, unless the engine was opened for more.
    `at_once` ids of a row are read for little more than the time of one; more take as long as several reads. `name` is
    "torch", "native" or "cuda"; `weights` says what the matrices are rounded to: "float32", "bfloat16", "int8" ...
    """

    name: str
    weights: str
    model: ByteLM
    at_once: int
    tolerance: float
    outputs: int

    def join(self, state: ByteLMState) -> int:
        """Add one sequence whose state (batch 1) is copied; returns its row number, valid until it leaves."""
        ...

    def fork(self, row: int) -> int:
        """Add a sequence in the state of `row`."""
        ...

    def read(self, rows: Sequence[int], data: Sequence[Ids]) -> list[Logits]:
        """Row `rows[i]` reads `data[i]` (at least one byte each).

        Returns, for each row, the logits (len(data[i]), outputs) float32 of what follows each byte read, in an array
        that the next call may overwrite. Rows not named do nothing.
        """
        ...

    def rewind(self, row: int, count: int) -> None:
        """Make `row` have read only the first `count` bytes of its data in the last `read`, fewer than were there."""
        ...

    def state(self, row: int) -> ByteLMState:
        """A copy of the row's state, batch 1."""
        ...

    def leave(self, row: int) -> None:
        """Free the row."""
        ...


class TorchEngine:
    """Any model on any device, row by row: a matrix product over several rows would round differently from one row's.

    A single byte is a step; several bytes are one scan resumed from the row's state. The state before several bytes is
    held until the next read. A rewind goes back to it, and the few bytes that it keeps are scanned again together with
    the next ones, in the pass that verifies those: a rejected guess costs no pass of its own.
    """

    name = "torch"
    at_once = PREFILL_CHUNK
    BACKLOG = 16  # bytes that may wait to be scanned again; with more of them a rewind scans at once

    def __init__(self, model: ByteLM, outputs: int = BYTES) -> None:
        self.model, self.outputs = model, outputs
        dtype = model.compute_dtype or model.embedding.weight.dtype
        self.weights, self.tolerance = str(dtype).removeprefix("torch."), _TOLERANCE[dtype]
        self._states: dict[int, ByteLMState] = {}
        self._backlog: dict[int, list[int]] = {}
        self._before: dict[
            int, tuple[ByteLMState, list[int], int]
        ] = {}  # state, all that was scanned, the backlog in it
        self._next_row = 0

    def join(self, state: ByteLMState) -> int:
        """See `Engine.join`."""
        assert state.batch == 1, f"a row is one sequence, got a state of {state.batch}"
        row, self._next_row = self._next_row, self._next_row + 1
        self._states[row], self._backlog[row] = ByteLMState(state.layers).clone(), []
        return row

    def fork(self, row: int) -> int:
        """See `Engine.fork`."""
        new = self.join(self._states[row])
        self._backlog[new] = self._backlog[row]
        return new

    @torch.no_grad()
    def read(self, rows: Sequence[int], data: Sequence[Ids]) -> list[Logits]:
        """See `Engine.read`."""
        return [self._read_row(row, piece) for row, piece in zip(rows, data, strict=True)]

    def _read_row(self, row: int, data: Ids) -> Logits:
        self._before.pop(row, None)
        state, backlog = self._states[row], self._backlog[row]
        everything = [*backlog, *data]
        ids = as_tensor(self.model, everything)
        if len(ids) == 1:
            return self._to_host(self.model.step_(ids, state))
        if len(data) > 1:  # of one byte nothing can be taken back
            self._before[row] = (state, everything, len(backlog))
        logits, self._states[row] = self.model(ids[None], state)
        self._backlog[row] = []
        return self._to_host(logits[0, len(backlog) :])

    def _to_host(self, logits: torch.Tensor) -> Logits:
        return logits[:, : self.outputs].float().cpu().numpy()

    def rewind(self, row: int, count: int) -> None:
        """See `Engine.rewind`."""
        state, data, backlog = self._before.pop(row)
        self._states[row], self._backlog[row] = state, data[: backlog + count]
        if backlog + count > self.BACKLOG:
            self._catch_up(row)

    def state(self, row: int) -> ByteLMState:
        """See `Engine.state`."""
        self._catch_up(row)
        return self._states[row].clone()

    @torch.no_grad()
    def _catch_up(self, row: int) -> None:
        if self._backlog[row]:
            ids = as_tensor(self.model, self._backlog[row])
            _, self._states[row] = self.model.hidden(ids[None], self._states[row])
            self._backlog[row] = []

    def leave(self, row: int) -> None:
        """See `Engine.leave`."""
        del self._states[row], self._backlog[row]
        self._before.pop(row, None)


SIXTEEN_BITS = (
    "the fast one computes in 16 bits and this model in float32; rounding its weights to bfloat16 "
    "(--weights bfloat16, in Python weights='bfloat16') makes it several times faster"
)
# A scan and a step round differently: on presets up to 5M parameters by 8e-7 in float32 and 6e-3 in bfloat16 at most.
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def open_engine(model: ByteLM, *, weights: "Weights | None" = None, outputs: int = BYTES) -> Engine:
    """The fastest engine that serves `model` where it is, and says so once if that is plain torch.

    `weights` rounds the matrices to "bfloat16" or, on a CPU, "int8": faster and slightly different. None keeps them on
    a CPU; on a GPU, whose fast engine computes in 16 bits, it is what `dtype_on_gpu` says.
    `outputs`: see `Engine`.
    Weights may be copied here: open an engine again when the model has changed. Raises ValueError if `weights` is
    unknown or the model cannot be run with it.
    """
    if model.embedding.weight.device.type == "cuda":
        return _open_on_cuda(model, weights, outputs)
    dtype = model.embedding.weight.dtype
    reason = _why_not_native(model)
    if reason is None:
        from mambabyte.generation.native_step import NativeEngine

        kept: Weights = "bfloat16" if torch.bfloat16 in (dtype, model.compute_dtype) else "float32"
        return NativeEngine(model, weights=weights or kept, outputs=outputs)
    if weights is not None:
        raise ValueError(f"weights={weights!r} needs the native CPU engine, which cannot run this model: {reason}")
    if model.embedding.weight.device.type == "cpu":
        _say_once(reason)
    return TorchEngine(model, outputs)


def _open_on_cuda(model: ByteLM, weights: "Weights | None", outputs: int) -> Engine:
    from mambabyte.generation import cuda_step

    dtype, reason = dtype_on_gpu(model, weights), cuda_step.why_not(model)
    if reason is None and dtype in (torch.bfloat16, torch.float16):
        return cuda_step.CudaEngine(model, dtype=dtype, outputs=outputs)
    if weights == "bfloat16":
        raise ValueError(f"weights='bfloat16' needs the CUDA engine, which cannot run this model: {reason}")
    if reason is not None or weights is None:
        _say_once(reason or SIXTEEN_BITS)
    return TorchEngine(model, outputs)


def dtype_on_gpu(model: ByteLM, weights: "Weights | None") -> torch.dtype:
    """What the matrices of `model` are rounded to on a GPU: `weights`, or the dtype that it computes in.

    Weights in float32 without a `compute_dtype` are taken for masters, of which training rounded copies to
    `trained_dtype`, where that is known. Raises ValueError for weights that no GPU engine has.
    """
    asked = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if weights is not None:
        if weights not in asked:
            raise ValueError(f"weights={weights!r} is for CPUs; on a GPU give 'bfloat16' or 'float32'")
        return asked[weights]
    stored = model.embedding.weight.dtype
    trained = model.trained_dtype if stored == torch.float32 else None
    return model.compute_dtype or trained or stored


def why_unequal(model: ByteLM) -> str | None:
    """Why a model is not a stack of Mamba layers of one size without biases, or None."""
    from mambabyte.layers.mamba import Mamba

    units = list(model.units())
    if not units or not all(isinstance(unit.layer, Mamba) for unit in units):
        return "it has layers other than mamba"
    if len({(unit.layer.config, unit.layer.A_log.shape) for unit in units}) > 1:
        return "its layers differ in size"
    if any(unit.layer.config.bias for unit in units):
        return "its layers have biases in in_proj and out_proj"
    return None


def _why_not_native(model: ByteLM) -> str | None:
    try:
        from mambabyte.generation import native_step
    except ModuleNotFoundError as missing:
        return f"the module {missing.name} is not installed"
    return native_step.why_not(model)


@functools.lru_cache(maxsize=16)
def _say_once(reason: str) -> None:
    logger.warning("generation runs on the slower plain-torch engine: %s", reason)


@torch.no_grad()
def prefill(model: ByteLM, data: Ids, state: ByteLMState | None = None, outputs: int = BYTES) -> Context:
    """Read `data` (at least one byte) by scans of `PREFILL_CHUNK` bytes: the state and the logits of the next byte.

    One sequence at a time, so that what a prompt gives does not depend on its neighbours.
    """
    assert data, "there is nothing to read"
    hidden = None
    for start in range(0, len(data), PREFILL_CHUNK):
        hidden, state = model.hidden(as_tensor(model, data[start : start + PREFILL_CHUNK])[None], state)
    assert hidden is not None
    assert state is not None
    return Context(layers=state.layers, logits=model.head(hidden[:, -1])[:, :outputs].float())


def as_tensor(model: ByteLM, ids: Ids) -> torch.Tensor:
    """(len(ids),) on the model's device."""
    return torch.tensor(list(ids), dtype=torch.long, device=model.embedding.weight.device)
