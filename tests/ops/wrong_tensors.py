"""Every op with one of its tensors wrong, in every way: so that each backend can be seen to refuse it by name."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mambabyte.ops import causal_conv, cross_entropy, mixer, norm, selective_scan

from .scan_cases import conv_inputs, scan_inputs
from .test_mixer import case as mixer_inputs
from .test_norm import norm_inputs

Op = Callable[..., object]
RESETS = torch.zeros(2, 5, dtype=torch.bool)
CASES: dict[Op, dict[str, Tensor]] = {
    selective_scan: scan_inputs(2, 5, 4, 3) | {"resets": RESETS},
    causal_conv: conv_inputs(2, 5, 4) | {"resets": RESETS},
    mixer: mixer_inputs(2, 5, 4, 3, 2) | {"resets": RESETS},
    norm: norm_inputs(5, 4),
    cross_entropy: {"logits": torch.randn(2, 5, 7), "targets": torch.zeros(2, 5, dtype=torch.long)},
}
# The others are measured by these: where one of them is wrong, another may be the one that is named.
MEASURES = {"x", "xz", "A", "weight", "conv_weight", "dt_proj", "logits"}


def check(op: Op, backend: str) -> None:
    """Assert that every wrong tensor is refused in a sentence that names it, what it is and what it should be."""
    for name, tensor in CASES[op].items():
        for wrong, said in (*_misshapen(op, name, tensor), *_mistyped(name, tensor)):
            with pytest.raises(ValueError, match=rf"^{op.__name__}: {said}"):
                op(**CASES[op] | {name: wrong}, backend=backend)


def _misshapen(op: Op, name: str, tensor: Tensor) -> Iterator[tuple[Tensor, str]]:
    yield tensor[None], rf"{name} (has shape|must have dimensions)" if name not in MEASURES else ""
    for dimension in range(tensor.ndim):
        free = {("out_proj", 0), ("logits", 2)} | ({("x", d) for d in range(3)} if op is norm else set())
        if (name, dimension) not in free:
            wrong = tensor.narrow(dimension, 0, tensor.shape[dimension] - 1)
            shape = re.escape(str(tuple(wrong.shape)))
            yield wrong, r"\w+ has shape .*, expected" if name in MEASURES else rf"{name} has shape {shape}, expected"


def _mistyped(name: str, tensor: Tensor) -> Iterator[tuple[Tensor, str]]:
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float32):
        fits = {"resets": dtype == torch.bool, "targets": dtype == torch.int64}.get(name, dtype.is_floating_point)
        if not fits:
            yield tensor.to(dtype), rf"{name} must be .*, got {dtype}"
