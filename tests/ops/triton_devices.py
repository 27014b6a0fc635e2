"""Where the tests of the Triton backends run: interpreted on a CPU and, in runs of the tests marked `gpu`, compiled."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import pytest
from torch import Tensor

from mambabyte.ops import triton_support

DEVICES = [pytest.param("cpu", id="interpreted"), pytest.param("cuda", id="compiled", marks=pytest.mark.gpu)]
on_each_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _runs_here(request: pytest.FixtureRequest) -> None:
    if "device" in request.fixturenames and request.getfixturevalue("device") == "cpu" and (reason := why_not()):
        pytest.skip(reason)


def why_not() -> str | None:
    """Why nothing can be interpreted here, or None."""
    try:
        major, minor = (int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return "triton is not installed: its kernels are not interpreted"
    if (major, minor) < (3, 7):
        return f"the interpreter of Triton {major}.{minor} does not go with the NumPy that is installed"
    return None if triton_support.interpreted() else "Triton compiles in runs of the tests that need a GPU"


def on(device: str, case: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The case on this device."""
    return {name: tensor.to(device) for name, tensor in case.items()}
