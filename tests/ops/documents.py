"""Nothing crosses a reset, not even what no factor of 0 would stop: checked for every backend."""

import torch
from torch import Tensor

from mambabyte.ops import selective_scan
from tests.ops.scan_cases import scan_inputs

ROWS = ("x", "dt", "z", "B", "C")


def outputs_and_gradients(case: dict[str, Tensor], dy: Tensor, backend: str) -> dict[str, Tensor]:
    """y, the final state and the gradients of what belongs to positions or comes before them."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in case.items()}
    y, state = selective_scan(**leaves, backend=backend)
    names = (*ROWS, "initial_state")
    gradients = torch.autograd.grad((y, state), [leaves[n] for n in names], (dy, torch.ones_like(state)))
    return {"y": y.detach(), "state": state.detach()} | {f"d{n}": g for n, g in zip(names, gradients, strict=True)}


def check_documents_apart(backend: str, length: int) -> None:
    """Of three documents the middle one overflows, forward and backward: not a bit of the others changes."""
    first, last = length // 3, length - length // 4
    case = scan_inputs(1, length, 8, 5, resets=False)
    case["resets"] = torch.zeros(1, length, dtype=torch.bool)
    case["resets"][0, [first, last]] = True
    dy = torch.randn(1, length, 8)
    clean = outputs_and_gradients(case, dy, backend)
    case["x"][0, first + 2, :3] = torch.inf
    case["dt"][0, first + 3, 3:6] = torch.nan
    dy[0, last - 2] = torch.inf
    ours = outputs_and_gradients(case, dy, backend)
    assert not torch.isfinite(ours["y"][0, first + 3 : last, :6]).any()
    assert not torch.isfinite(ours["dx"][0, first : last - 2]).any()
    for name, value in ours.items():
        if name in ("state", "dinitial_state"):
            assert torch.equal(value, clean[name]), name
        else:
            assert torch.equal(value[:, :first], clean[name][:, :first]), f"{name} before the document"
            assert torch.equal(value[:, last:], clean[name][:, last:]), f"{name} after the document"
