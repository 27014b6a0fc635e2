"""Which CPU the vector kernels are written for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    """What kernels are written for: the CPU as LLVM names it and its vectors.

    `lanes` is the float32 lanes of a vector, `resident` how many state vectors a loop may carry without spilling.
    """

    cpu: str
    features: str
    lanes: int
    resident: int
    avx512: bool


def target_for(cpu: str, features: str) -> Target:
    """The target of a CPU with these LLVM features ("+avx2,-avx512f,..."): 16 lanes with AVX-512, otherwise 8.

    AVX2 has one register for 8 lanes, NEON two; LLVM splits what the machine has not.
    """
    if "+avx512f" in features and "+avx512dq" in features:  # dq: vreduceps
        # LLVM prefers 256-bit vectors on some CPUs that run 512-bit ones at full speed
        return Target(cpu, features + ",-prefer-256-bit", lanes=16, resident=16, avx512=True)
    return Target(cpu, features, lanes=8, resident=8, avx512=False)


@functools.cache
def host_target() -> Target:
    """The target of the machine that runs this process."""
    return target_for(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
