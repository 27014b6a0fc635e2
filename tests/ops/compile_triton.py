"""Compile the Triton kernels for a GPU that is not here, and print registers and spills: run by test_triton_source.py.

python tests/ops/compile_triton.py sm_90|gfx942
"""

import json
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor

from mambabyte.ops.causal_conv import triton_kernels as conv
from mambabyte.ops.cross_entropy import triton_kernels as cross_entropy
from mambabyte.ops.norm import triton_kernels as norm
from mambabyte.ops.selective_scan import triton as scan_sizes
from mambabyte.ops.selective_scan import triton_kernels as scan

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}

F, FLAGS, LONG, IO = (MockTensor(t) for t in (torch.float32, torch.uint8, torch.int64, torch.bfloat16))
ROWS, PER_STATE = (IO, 8192 * 2048, 2048), (IO, 8192 * 16, 16)
WALK = (8192, 2048, 2, 4096)


class Absent:
    """Stands for the driver of a GPU."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def launches():  # type: ignore[no-untyped-def]
    """Name, kernel, arguments and options as the wrappers launch them for bfloat16 and 16 states."""
    tile = scan_sizes._tile(16)
    walk = tile | {"CHUNK": scan_sizes.CHUNK, "SOFTPLUS": True}
    ahead = (ROWS, ROWS, ROWS, PER_STATE, PER_STATE, F, F, F, FLAGS, F)
    yield "scan forward", scan.forward, (*ahead, IO, F, None, F, *WALK), walk | {"ROWS": scan_sizes.FORWARD_ROWS}
    yield "scan states", scan.forward, (*ahead[:-1], None, None, F, F, None, *WALK), walk | {"ROWS": 4}
    back = (
        ROWS,
        ROWS,
        ROWS,
        ROWS,
        PER_STATE,
        PER_STATE,
        F,
        F,
        F,
        FLAGS,
        F,
        F,
        F,
        IO,
        IO,
        ROWS,
        IO,
        F,
        F,
        F,
        F,
        F,
        *WALK,
    )
    yield "scan backward", scan.backward, back, walk | {"ROWS": scan_sizes.BACKWARD_ROWS}
    adjoint = (ROWS, ROWS, ROWS, PER_STATE, F, F, FLAGS, F, F, *WALK)
    yield "scan adjoint", scan.adjoint, adjoint, tile | {"ROWS": 4, "SOFTPLUS": True}
    yield "scan carry", scan.carry, (F, F, F, F, 2, 2048), tile | {"BACK": True}
    row = ((IO, 2048, 0), (IO, 2048, 0), (IO, 2048, 0), (IO, 16, 0), (IO, 16, 0))
    yield "scan step", scan.step, ((F, 2048 * 16, 16, 1), *row, F, F, F, IO, 2048), tile | {"SOFTPLUS": True}
    taps = {"W": 4, "BLOCK": 128}
    inputs, shape = (ROWS, IO, F, F, FLAGS), (8192, 2048)
    yield "convolution forward", conv.forward, (*inputs, IO, *shape), taps | {"TIME": 16, "SILU": True}
    yield "convolution state", conv.remember, (ROWS, IO, FLAGS, IO, *shape), taps
    yield (
        "convolution backward",
        conv.backward,
        (*inputs, ROWS, IO, ROWS, IO, F, *shape),
        taps | {"TIME": 16, "SILU": True},
    )
    yield "convolution step", conv.step, ((IO, 6144, 2048, 1), row[0], F, F, IO, 2048), taps | {"SILU": True}
    layer = {"BLOCK": 1024, "LAYER": True, "num_warps": 2}
    yield "norm forward", norm.forward, (IO, F, F, F, 1e-5, IO, F, F, F, 1024), layer
    yield "norm backward", norm.backward, (IO, F, F, F, F, F, F, F, 65536, 1024), layer
    bytes_ = {"BLOCK": 256, "num_warps": 1}
    yield "cross-entropy forward", cross_entropy.forward, (IO, LONG, F, F, -100, 256), bytes_
    yield "cross-entropy backward", cross_entropy.backward, (F, 0, IO, LONG, F, IO, -100, 256), bytes_


def resources(assembly: dict) -> dict[str, int]:  # type: ignore[type-arg]
    """Registers of a thread, and bytes (NVIDIA) or registers (AMD) that were spilled."""
    if "amdgcn" in assembly:
        found = re.search(r"\.vgpr_count:\s*(\d+)\s+\.vgpr_spill_count:\s*(\d+)", assembly["amdgcn"])
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(assembly["cubin"])
            file.flush()
            tool = triton.knobs.nvidia.cuobjdump.path
            report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, "the assembler reports no registers"
    return {"registers": int(found[1]), "spilled": int(found[2])}


if __name__ == "__main__":
    driver.set_active(Absent(TARGETS[sys.argv[1]]))
    compiled = {n: kernel.warmup(*arguments, grid=(1,), **options) for n, kernel, arguments, options in launches()}
    print(json.dumps({name: resources(kernel.asm) for name, kernel in compiled.items()}))
