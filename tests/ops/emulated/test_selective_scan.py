"""The CUDA scan, thread by thread on a CPU, against the reference in float64."""

import pytest
import torch

from mambabyte.ops import selective_scan, selective_scan_step
from tests.ops.gpu.compare import TOLERANCE, check
from tests.ops.scan_cases import ending, scan_inputs


@pytest.mark.parametrize(
    ("length", "channels", "states", "dtype"),
    [(37, 12, 16, torch.bfloat16), (290, 16, 16, torch.float32)],
    ids=str,
)
def test_values_and_gradients(length: int, channels: int, states: int, dtype: torch.dtype) -> None:
    check(selective_scan, scan_inputs(2, length, channels, states, dtype=dtype), TOLERANCE[dtype])


def test_without_optional_tensors() -> None:
    case = scan_inputs(1, 40, 7, 5, resets=False, initial=False)
    for name in ("D", "z", "dt_bias"):
        del case[name]
    case["dt"] = case["dt"].abs() * 0.1
    check(selective_scan, case, TOLERANCE[torch.float32], dt_softplus=False)


def test_a_step_is_a_scan_of_one_position() -> None:
    case = scan_inputs(3, 1, 10, resets=False)
    y, last = selective_scan(**case, backend="cuda")
    row = {name: t[:, 0] if name in ("x", "dt", "B", "C", "z") else t for name, t in case.items()}
    state = row.pop("initial_state").clone()
    out = selective_scan_step(state, **row, backend="cuda")
    torch.testing.assert_close(out, y[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_rows_may_end_at_different_positions() -> None:
    ends = [0, 7, 40]
    stopped, alone = ending(scan_inputs(3, 40, 16, resets=False), ends)
    check(selective_scan, stopped, TOLERANCE[torch.float32])
    _, state = selective_scan(**stopped, backend="cuda")
    for row, case in enumerate(alone):
        torch.testing.assert_close(
            state[row : row + 1], selective_scan(**case, backend="cuda")[1], rtol=1e-5, atol=1e-5
        )
