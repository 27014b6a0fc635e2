"""Which CPU the vector kernels are written for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    """What kernels are written for: the CPU as LLVM names it and its vectors.

    `lanes` is the float32 lanes of a vector, `resident` how many state vectors a loop may carry without spilling,
    `byte_products` LLVM's name of the instruction that adds four products of bytes to each 32-bit lane, or None.
    """

    cpu: str
    features: str
    lanes: int
    resident: int
    avx512: bool
    byte_products: str | None


def target_for(cpu: str, features: str) -> Target:
    """The target of a CPU with these LLVM features ("+avx2,-avx512f,..."): 16 lanes with AVX-512, otherwise 8.

    AVX2 has one register for 8 lanes, NEON two; LLVM splits what the machine has not.
    """
    if "+avx512f" in features and "+avx512dq" in features:  # dq: vreduceps
        # LLVM prefers 256-bit vectors on some CPUs that run 512-bit ones at full speed
        products = "llvm.x86.avx512.vpdpbusd.512" if "+avx512vnni" in features else None
        wide = features + ",-prefer-256-bit"
        return Target(cpu, wide, lanes=16, resident=16, avx512=True, byte_products=products)
    products = "llvm.x86.avx512.vpdpbusd.256" if "+avxvnni" in features.split(",") else None
    return Target(cpu, features, lanes=8, resident=8, avx512=False, byte_products=products)


@functools.cache
def host_target() -> Target:
    """The target of the machine that runs this process."""
    return target_for(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
