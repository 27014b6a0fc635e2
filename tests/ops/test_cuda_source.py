"""The CUDA sources compile for every supported architecture, without a GPU, and few registers spill."""

import re

import pytest
import torch

from mambabyte.ops import nvrtc
from mambabyte.ops.decode import persistent, wide
from mambabyte.ops.decode.sizes import Sizes
from tests.ops.compile_cuda import (
    ARCHITECTURES,
    Case,
    compiled,
    conv_case,
    cross_entropy_case,
    norm_case,
    scan_case,
)

pytest.importorskip("cuda.core", reason="cuda-core is not installed: the CUDA sources are not compiled here")
pytest.importorskip("nvidia.cu13", reason="nvidia-cuda-nvrtc is not installed: the CUDA sources are not compiled here")

TUNED = "sm_90"  # the decoding kernels' architecture; on others they are only known to compile


def compile_and_print(arch: str, *sources: str, **defines: int) -> dict[str, int]:
    """Bytes spilled by each kernel of the sources; prints its registers beside them."""
    _, report = nvrtc.compile_cubin(nvrtc.read_source(*sources), defines, arch)
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", report, re.S)
    assert found, report
    for name, spilled, registers in found:
        print(f"{arch} {name}: {registers} registers, {spilled} bytes spilled")
    return {name: int(spilled) for name, spilled, _ in found}


def spilled(case: Case, arch: str) -> dict[str, int]:
    """Bytes that each kernel of the case spills."""
    return {kernel.name: compiled(kernel, arch).spilled for kernel in case.kernels}


TRAINED = [scan_case(16), conv_case(4), conv_case(4, resets=True), norm_case(1024), cross_entropy_case(256)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("case", TRAINED, ids=lambda case: f"{case.kernels[0].name}, {case.problem}")
def test_what_is_trained_does_not_spill(case: Case, arch: str) -> None:
    assert not any(spilled(case, arch).values())


@pytest.mark.parametrize(("states", "most"), [(4, 64), (16, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_scan_with_resets_spills_a_register_or_with_few_states_some(states: int, most: int, dtype: torch.dtype) -> None:
    """Four states in float32 spill nothing with one compiler and 48 bytes with the next; 424 with groups of 8 rows."""
    assert max(spilled(scan_case(states, dtype, resets=True), TUNED).values()) <= most


@pytest.mark.parametrize(
    "case",
    [
        scan_case(5, gated=False),
        scan_case(64, torch.float16, aligned=False, aligned_bc=False),
        conv_case(4, channels=3584, row_stride=3584),
        conv_case(4, torch.float32, resets=True),
        conv_case(4, resets=True, channels=1001, row_stride=1001, aligned=False),
        conv_case(8, torch.float32),
        norm_case(4096, "layer"),
    ],
    ids=lambda case: case.problem,
)
def test_other_problems_do_not_spill(case: Case) -> None:
    assert not any(spilled(case, TUNED).values())


def test_a_source_that_does_not_compile_says_where() -> None:
    with pytest.raises(RuntimeError, match="sm_90 with IO=0"):
        nvrtc.compile_cubin("nonsense", {"IO": 0}, "sm_90")


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


@pytest.mark.parametrize("columns", [64, 4096])
def test_products_of_warpgroups_do_not_spill(columns: int) -> None:
    """With the smallest thread blocks and with the largest."""
    sizes = Sizes(
        D=1024, E=2048, N=16, R=64, W=4, V=256, layers=53, layer_norm=True, norm_bias=False, eps=1e-5,
        dtype=torch.bfloat16,
    )  # fmt: skip
    many = wide.Wide(sizes, columns, 256, torch.device("cpu"), warpgroups=True)
    spilled = compile_and_print(nvrtc.WARPGROUPS, *wide.SOURCES, **many.defines)
    assert not any(spilled[f"{name}_product"] for name in ("in", "out", "head")), spilled
