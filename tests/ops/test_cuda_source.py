"""The CUDA sources compile for every supported architecture, without a GPU, and the scan's registers do not spill."""

import re

import pytest
import torch

from mambabyte.ops import nvrtc
from mambabyte.ops.causal_conv import cuda as conv
from mambabyte.ops.cross_entropy import cuda as cross_entropy
from mambabyte.ops.decode import persistent, wide
from mambabyte.ops.decode.sizes import Sizes
from mambabyte.ops.norm import cuda as norm
from mambabyte.ops.selective_scan import cuda as scan

pytest.importorskip("cuda.core", reason="cuda-core is not installed: the CUDA sources are not compiled here")
pytest.importorskip("nvidia.cu13", reason="nvidia-cuda-nvrtc is not installed: the CUDA sources are not compiled here")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
TUNED = "sm_90"  # the decoding kernels' architecture; on others they are only known to compile
OPTIONS = scan.Options(0, 16, 2, 4, True, False, True, True, True)


def compile_and_print(arch: str, *sources: str, **defines: int) -> dict[str, int]:
    """Bytes spilled by each kernel of the sources; prints its registers beside them."""
    _, report = nvrtc.compile_cubin(nvrtc.read_source(*sources), defines, arch)
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", report, re.S)
    assert found, report
    for name, spilled, registers in found:
        print(f"{arch} {name}: {registers} registers, {spilled} bytes spilled")
    return {name: int(spilled) for name, spilled, _ in found}


def scan_defines(states: int) -> dict[str, int]:
    laid = scan.plan(8, 8192, 2048, states)
    options = OPTIONS._replace(n=states, channels=laid.channels, warps=laid.warps).defines()
    return options | {"BATCH": scan.BATCH, "GROUP": scan.GROUP, "SHARED_BYTES": laid.shared_backward}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scan_compiles_without_spilling(arch: str) -> None:
    defines = scan_defines(16)
    backward = (*scan.HEADERS, "selective_scan/backward.cu")
    forward = (*scan.HEADERS, "selective_scan/forward.cu")
    spilled = compile_and_print(arch, *backward, **defines, TILE=scan.TILE, MIN_BLOCKS=1)
    spilled |= compile_and_print(arch, *forward, **defines, TILE=scan.FORWARD_TILE, MIN_BLOCKS=scan.FORWARD_BLOCKS)
    assert not any(spilled.values()), spilled


@pytest.mark.parametrize(
    ("states", "changes"),
    [(1, {"IO": 2, "RESETS": 1}), (5, {"GATED": 0}), (64, {"ALIGNED": 0, "ALIGNED_BC": 0, "IO": 1})],
)
def test_scan_compiles_for_other_problems(states: int, changes: dict[str, int]) -> None:
    defines = scan_defines(states) | changes
    compile_and_print("sm_90", *scan.HEADERS, "selective_scan/backward.cu", **defines, TILE=scan.TILE, MIN_BLOCKS=1)
    compile_and_print(
        "sm_90",
        *scan.HEADERS,
        "selective_scan/forward.cu",
        **defines,
        TILE=scan.FORWARD_TILE,
        MIN_BLOCKS=scan.FORWARD_BLOCKS,
    )
    compile_and_print("sm_90", *scan.HEADERS, "selective_scan/step.cu", **defines)


def test_a_source_that_does_not_compile_says_where() -> None:
    with pytest.raises(RuntimeError, match="sm_90 with IO=0"):
        nvrtc.compile_cubin("nonsense", {"IO": 0}, "sm_90")


def test_other_kernels_compile_without_spilling() -> None:
    convolution = {"IO": 0, "WIDTH": 4, "SILU": 1, "RESETS": 1, "ALIGNED": 1}
    row = {"IO": 0, "X_FLOATS": 0, "WIDTH": 1024, "WARPS_A_ROW": 2, "ROWS_A_BLOCK": 4, "LAYER": 0, "BIAS": 0}
    spilled = {}
    for rows, read, threads in (conv.FORWARD, conv.BACKWARD):
        sizes = {"ROWS": rows, "READ": read, "THREADS": threads}
        report = compile_and_print("sm_90", *conv.SOURCES, **convolution, **sizes)
        direction = "conv_forward" if (rows, read, threads) == conv.FORWARD else "conv_backward"
        spilled[direction] = report[direction]
    spilled |= compile_and_print("sm_90", *norm.SOURCES, **row)
    spilled |= compile_and_print("sm_90", *cross_entropy.SOURCES, IO=0, VOCABULARY=256, WARPS=4)
    assert not any(spilled.values()), spilled


@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_decoding_compiles(arch: str) -> None:
    """The 353M's sizes. Where they were tuned nothing spills but where eight bytes take all registers."""
    sizes = Sizes(
        D=1024, E=2048, N=16, R=64, W=4, V=256, layers=53, layer_norm=True, norm_bias=False, eps=1e-5,
        dtype=torch.bfloat16,
    )  # fmt: skip
    for columns in persistent.CAPACITIES:
        cut = persistent.Cut.of(sizes, 132, 227 * 1024, columns=columns)
        assert cut.fits
        spilled = compile_and_print(arch, *persistent.SOURCES, **cut.defines)
        assert columns > 1 or arch != TUNED or not any(spilled.values()), spilled
    many = wide.Wide(sizes, 64, 256, torch.device("cpu"))
    spilled = compile_and_print(arch, *wide.SOURCES, **many.defines)
    assert arch != TUNED or not any(spilled.values()), spilled
