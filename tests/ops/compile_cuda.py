"""Compile the CUDA kernels for GPUs that are not here, and print registers and spills: run by test_cuda_source.py.

python tests/ops/compile_cuda.py sm_80 sm_90 sm_100    the table of docs/kernels.md, in some four minutes
"""

import functools
import itertools
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch

from mambabyte.ops import nvrtc
from mambabyte.ops.causal_conv import cuda as conv
from mambabyte.ops.causal_conv.cuda_plan import LONG_BACKWARD_ROWS, Problem
from mambabyte.ops.cross_entropy import cuda as cross_entropy
from mambabyte.ops.norm import cuda as norm
from mambabyte.ops.selective_scan import cuda as scan
from mambabyte.ops.selective_scan import cuda_plan

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "float32"}


class Size(NamedTuple):
    """What a kernel takes."""

    registers: int
    spilled: int  # bytes of stores


@functools.cache
def _report(sources: tuple[str, ...], defines: tuple[tuple[str, int], ...], arch: str) -> str:
    return nvrtc.compile_cubin(nvrtc.read_source(*sources), dict(defines), arch)[1]


class Case(NamedTuple):
    """Kernels as a wrapper gets them for some problem."""

    problem: str
    kernels: tuple[nvrtc.Kernel, ...]


def compiled(kernel: nvrtc.Kernel, arch: str) -> Size:
    """Compile one kernel as it would be for a GPU of this architecture."""
    report = _report(kernel.sources, kernel.defines, arch)
    pattern = rf"entry function '{kernel.name}'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    found = re.search(pattern, report, re.S)
    assert found, report
    return Size(int(found[2]), int(found[1]))


def scan_case(states: int, dtype: torch.dtype = torch.bfloat16, *, resets: bool = False, **changes: bool) -> Case:
    """The scan's kernels, gated, with softplus and whole quads unless changed, as for a wide model."""
    laid = cuda_plan.plan(8, 8192, 2048, states)
    chosen = {"gated": True, "softplus": True, "aligned": True, "aligned_bc": True} | changes
    options = scan.Options(nvrtc.IO_CODES[dtype], states, laid.warps, resets=resets, **chosen)
    kernels = [scan._forward_kernel(name, options) for name in ("scan_forward", "scan_segment_states")]
    kernels += [scan._backward_kernel("scan_backward", options, laid.shared_backward)]
    if not resets:
        kernels += [scan._step_kernel(dtype, states, True, True)]
    return Case(f"{NAMES[dtype]}, {states} states{', resets' if resets else ''}", tuple(kernels))


def conv_case(
    taps: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    resets: bool = False,
    channels: int = 2048,
    row_stride: int = 4096,
    aligned: bool = True,
) -> Case:
    """The convolution's kernels with SiLU, for x as half of xz unless changed."""
    problem = Problem(dtype, channels, taps, silu=True, resets=resets, aligned=aligned)
    chosen = [conv._forward_kernel(problem, row_stride), conv._backward_kernel(problem, LONG_BACKWARD_ROWS)]
    if not resets:
        chosen += [conv._step_kernel(problem)]
    named = f"{NAMES[dtype]}, {taps} taps{'' if aligned else ', odd channels'}{', resets' if resets else ''}"
    return Case(named, tuple(kernel for kernel, _ in chosen))


def norm_case(width: int, kind: str = "rms") -> Case:
    """The norm's kernels."""
    kernels = [norm._kernel(n, width, torch.bfloat16, kind, n == "norm_backward", kind == "layer")[0] for n in NORM]
    return Case(f"bf16, {kind} of {width}", tuple(kernels))


NORM = ("norm_forward", "norm_backward")


def cross_entropy_case(vocabulary: int) -> Case:
    """The cross-entropy's kernels."""
    kernels = [cross_entropy._kernel(f"cross_entropy_{way}", 0, vocabulary) for way in ("forward", "backward")]
    return Case(f"bf16, {vocabulary} classes", tuple(kernels))


def table() -> Iterator[Case]:
    """Everything that docs/kernels.md shows."""
    for dtype, states, resets in itertools.product(
        (torch.bfloat16, torch.float32), (1, 2, 4, 8, 16, 32, 64), (False, True)
    ):
        yield scan_case(states, dtype, resets=resets)
    yield conv_case(4)
    for dtype, taps in itertools.product((torch.bfloat16, torch.float32), (2, 4, 9, 16)):
        yield conv_case(taps, dtype, resets=True)
    yield from (norm_case(width, kind) for width in (1024, 16384) for kind in ("rms", "layer"))
    yield from (cross_entropy_case(vocabulary) for vocabulary in (256, 4096))


def main(architectures: list[str]) -> None:
    """Registers, and bytes spilled where there are any."""
    print(f"| kernel | problem | {' | '.join(architectures)} |")
    print(f"|---|---|{'---:|' * len(architectures)}")
    for problem, kernels in table():
        for kernel in kernels:
            sizes = [compiled(kernel, arch) for arch in architectures]
            shown = [f"{s.registers}" + (f", {s.spilled} B" if s.spilled else "") for s in sizes]
            print(f"| {kernel.name} | {problem} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(ARCHITECTURES))
