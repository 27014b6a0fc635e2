"""The CUDA sources compile for every supported architecture, without a GPU, and the scan's registers do not spill."""

import re

import pytest

from mambabyte.ops import nvrtc
from mambabyte.ops.selective_scan import cuda as scan

pytest.importorskip("cuda.core", reason="cuda-core is not installed: the CUDA sources are not compiled here")
pytest.importorskip("nvidia.cu13", reason="the wheel nvidia-cuda-nvrtc is not installed: the CUDA sources are not compiled here")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
OPTIONS = {"CHUNK": scan.CHUNK, "GATED": 1, "RESETS": 0, "SOFTPLUS": 1, "ALIGNED": 1, "ALIGNED_BC": 1, "MIN_BLOCKS": 1}


def compile_and_print(arch: str, *sources: str, **defines: int) -> dict[str, int]:
    """Bytes spilled by each kernel of the sources; prints its registers beside them."""
    _, report = nvrtc.compile_cubin(nvrtc.read_source(*sources), defines, arch)
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", report, re.S)
    assert found, report
    for name, spilled, registers in found:
        print(f"{arch} {name} {defines}: {registers} registers, {spilled} bytes spilled")
    return {name: int(spilled) for name, spilled, _ in found}


def scan_defines(states: int, io: int, **changes: int) -> dict[str, int]:
    laid = scan.plan(8, 8192, 2048, states)
    sizes = {"IO": io, "N": states, "CHANNELS": laid.channels, "WARPS": laid.warps, "SHARED_BYTES": laid.shared_backward}
    return OPTIONS | sizes | changes


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scan_compiles_without_spilling(arch: str) -> None:
    defines = scan_defines(16, io=0)
    backward = (*scan.HEADERS, "selective_scan/backward.cu")
    forward = (*scan.HEADERS, "selective_scan/forward.cu")
    spilled = compile_and_print(arch, *backward, **defines, TILE=scan.TILE, GROUP=scan.GROUP)
    spilled |= compile_and_print(arch, *forward, **defines, TILE=16, BATCH=scan.BATCH)
    assert not any(spilled.values()), spilled


@pytest.mark.parametrize(
    ("states", "changes"),
    [(1, {"IO": 2}), (5, {"GATED": 0}), (24, {"RESETS": 1}), (64, {"ALIGNED": 0, "ALIGNED_BC": 0, "IO": 1})],
)
def test_scan_compiles_for_other_problems(states: int, changes: dict[str, int]) -> None:
    defines = scan_defines(states, io=0) | changes
    compile_and_print("sm_90", *scan.HEADERS, "selective_scan/backward.cu", **defines, TILE=scan.TILE, GROUP=scan.GROUP)
    compile_and_print("sm_90", *scan.HEADERS, "selective_scan/forward.cu", **defines, TILE=16, BATCH=scan.BATCH)
    compile_and_print("sm_90", *scan.HEADERS, "selective_scan/step.cu", **defines)


def test_a_source_that_does_not_compile_says_where() -> None:
    with pytest.raises(RuntimeError, match="sm_90 with IO=0"):
        nvrtc.compile_cubin("nonsense", {"IO": 0}, "sm_90")
