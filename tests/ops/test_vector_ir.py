"""The vocabulary of the CPU kernels: functions of a vector, memory, control flow, on this CPU and without AVX-512."""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mambabyte.ops import vector_math
from mambabyte.ops.native import Kernel, compile_object
from mambabyte.ops.target import Target, host_target, target_for
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_math import exp2, fma, largest, sigmoid, softplus_and_slope, sums
from mambabyte.ops.vector_values import BFLOAT, BYTE, FLOAT, Vec


def without_avx512() -> Target:
    host = host_target()
    return target_for(host.cpu, re.sub(r"\+avx512", "-avx512", host.features))


@pytest.fixture(params=["host", "portable"])
def target(request: pytest.FixtureRequest) -> Target:
    return host_target() if request.param == "host" else without_avx512()


def apply(target: Target, operation: Callable[[Vec], Vec], x: torch.Tensor) -> torch.Tensor:
    """The operation on every element of x."""
    f = Function("apply", target, {"x": FLOAT, "y": FLOAT}, ["size", "tasks"])
    lanes = target.lanes

    def task(block) -> None:  # type: ignore[no-untyped-def]
        at = block * lanes
        mask = f.mask_below(f.index("size") - at)
        (f.pointer("y") + at).store(operation((f.pointer("x") + at).load(mask)), mask)

    f.for_each_task(f.index("tasks"), task)
    y = torch.full_like(x, float("nan"))
    Kernel(f)(threads=1, x=x, y=y, size=len(x), tasks=-(-len(x) // lanes))
    return y


def test_portable_target_has_no_avx512() -> None:
    assert not without_avx512().avx512
    assert without_avx512().lanes == 8


def test_exp2_keeps_the_decay_rate(target: Target) -> None:
    # a decay close to one is applied thousands of times: what must be accurate is its logarithm, up to a rounding
    x = -torch.logspace(-6, 1.5, 4001)
    y = apply(target, exp2, x).double()
    assert ((y.log2() - x.double()).abs() <= 5e-7 * x.double().abs() + 1e-7).all()


def test_exp2_at_the_edges(target: Target) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 127.0, -126.0, -1e4, -1e30, -math.inf, math.nan])
    y = apply(target, exp2, x)
    torch.testing.assert_close(y[:6], torch.tensor([1.0, 1.0, 2.0, 0.5, 2.0**127, 2.0**-126]), rtol=0, atol=0)
    assert (y[6:9] <= 2.0**-126).all()
    assert (y[6:9] >= 0).all()
    assert y[9].isnan()
    assert (apply(target, exp2, torch.tensor([128.0, 1e9, math.inf])) > 3e38).all()


def test_exp2_polynomial_is_fitted_to_the_decay_rate() -> None:
    f = np.linspace(-0.5, 0.5, 20001)
    f = f[f != 0]
    p = np.polynomial.polynomial.polyval(f, vector_math.EXP2)
    assert np.abs((np.log2(p) - f) / f).max() < 5e-7


def test_softplus_and_its_slope(target: Target) -> None:
    x = torch.cat([torch.linspace(-80, 80, 3001), torch.tensor([-1e4, 1e4, math.inf])])
    exact = torch.nn.functional.softplus(x.double(), threshold=100)
    y = apply(target, lambda v: softplus_and_slope(v)[0], x)
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-37)
    slope = apply(target, lambda v: softplus_and_slope(v)[1](), x)
    torch.testing.assert_close(slope.double(), x.double().sigmoid(), rtol=1e-6, atol=1e-37)


def test_sigmoid(target: Target) -> None:
    x = torch.cat([torch.linspace(-80, 80, 3001), torch.tensor([-math.inf, math.inf])])
    torch.testing.assert_close(apply(target, sigmoid, x).double(), x.double().sigmoid(), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_sums_adds_up_each_vector(target: Target, count: int) -> None:
    f = Function("add_up", target, {"x": FLOAT, "y": FLOAT}, ["tasks"])
    rows = [f.pointer("x") + k * target.lanes for k in range(count)]
    f.for_each_task(f.index("tasks"), lambda _: f.pointer("y").store(sums([row.load() for row in rows])))
    x, y = torch.randn(count, target.lanes), torch.full((target.lanes,), float("nan"))
    Kernel(f)(threads=1, x=x, y=y, tasks=1)
    torch.testing.assert_close(y[:count], x.sum(1))
    assert (y[count:] == 0).all()


def test_bfloat16_rounds_as_torch_does(target: Target) -> None:
    x = (
        torch.randint(-(2**31), 2**31 - 1, (4096,), generator=torch.Generator().manual_seed(0))
        .int()
        .view(torch.float32)
    )
    x = torch.cat([x, torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8])])
    f = Function("round", target, {"x": FLOAT, "y": BFLOAT, "back": FLOAT}, ["size", "tasks"])

    def task(block) -> None:  # type: ignore[no-untyped-def]
        at = block * target.lanes
        mask = f.mask_below(f.index("size") - at)
        (f.pointer("y") + at).store((f.pointer("x") + at).load(mask), mask)
        (f.pointer("back") + at).store((f.pointer("y") + at).load(mask), mask)

    f.for_each_task(f.index("tasks"), task)
    y, back = torch.zeros(len(x), dtype=torch.bfloat16), torch.zeros(len(x))
    Kernel(f)(threads=1, x=x, y=y, back=back, size=len(x), tasks=-(-len(x) // target.lanes))
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_gather(target: Target) -> None:
    f = Function("strided", target, {"x": FLOAT, "strided": FLOAT}, ["count", "tasks"])
    f.for_each_task(f.index("tasks"), lambda _: f.pointer("strided").store(f.pointer("x").gather(2, f.index("count"))))
    x, strided = torch.arange(-5.0, target.lanes - 5), torch.zeros(target.lanes)
    Kernel(f)(threads=1, x=x, strided=strided, count=3, tasks=1)
    assert strided.tolist() == [-5.0, -3.0, *[-1.0] * (target.lanes - 2)]


def test_integers_and_bytes(target: Target) -> None:
    """Round to integers, store their lowest bytes, shift, mask and widen."""
    names = ("x", "rounded", "bytes", "shifted", "upper", "top")
    f = Function("integers", target, {name: BYTE if name == "bytes" else FLOAT for name in names}, ["tasks"])

    def task(_) -> None:  # type: ignore[no-untyped-def]
        x = f.pointer("x").load()
        level = x.rounded().plus(1 << 15)
        f.pointer("rounded").store(level.to_floats())
        level.store_bytes(f.pointer("bytes"))
        f.pointer("shifted").store(level.shift_right(8).to_floats())
        f.pointer("upper").store(x.bits().mask(0xFFFF0000).as_floats())
        f.pointer("top").store(largest(x))

    f.for_each_task(f.index("tasks"), task)
    x = 30000 * torch.randn(target.lanes, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    x[:4] = torch.tensor([0.5, 1.5, -2.5, -0.49])
    out = {name: torch.zeros(target.lanes) for name in names[1:]}
    out["bytes"] = torch.zeros(target.lanes, dtype=torch.uint8)
    Kernel(f)(threads=1, x=x, tasks=1, **out)
    level = x.round().long() + (1 << 15)
    assert torch.equal(out["rounded"], level.float())
    assert torch.equal(out["bytes"].long(), level % 256)
    assert torch.equal(out["shifted"].long(), level // 256)
    assert torch.equal(out["upper"], (x.view(torch.int32) & -65536).view(torch.float32))
    assert torch.equal(out["top"], x.max().expand(target.lanes))


@pytest.mark.parametrize("instruction", [True, False])
def test_products_of_bytes(target: Target, instruction: bool) -> None:
    """Four products of extreme and random bytes are added exactly, by the CPU's instruction or without one."""
    if not instruction:
        target = dataclasses.replace(target, byte_products=None)
    f = Function("products", target, {"a": BYTE, "w": FLOAT, "y": FLOAT}, ["tasks"])

    def task(_) -> None:  # type: ignore[no-untyped-def]
        sums = f.vec(1000.0).rounded()
        for _ in range(3):
            sums = f.add_products_of_bytes(sums, f.pointer("a").splat_word(), f.pointer("w").load().bits())
        f.pointer("y").store(sums.to_floats())

    f.for_each_task(f.index("tasks"), task)
    g = torch.Generator().manual_seed(0)
    for a in (torch.full((4,), 255), torch.zeros(4), torch.randint(256, (4,), generator=g)):
        w = torch.randint(-128, 128, (target.lanes, 4), generator=g).to(torch.int8)
        w[0], w[1] = -128, 127
        y = torch.zeros(target.lanes)
        Kernel(f)(threads=1, a=a.to(torch.uint8), w=w.view(torch.float32), y=y, tasks=1)
        assert torch.equal(y, 1000 + 3 * (w.float() @ a.float()))


def test_control_flow(target: Target) -> None:
    f = Function("flow", target, {"x": FLOAT, "stop": BYTE}, ["n", "tasks"])

    def task(_) -> None:  # type: ignore[no-untyped-def]
        start = f.vec(1.0)
        # reverse order shows in a + 2 a': from the last step down, x[0] enters last and undoubled
        (total,) = f.loop(
            0, f.index("n"), [start], lambda i, c: [fma(c[0], 2.0, (f.pointer("x") + i).splat())], reverse=True
        )
        found = f.repeat_while(
            [f.number(0)], lambda c: f.b.not_((f.pointer("stop") + c[0]).bit()), lambda c: [c[0] + 1]
        )[0]
        f.either(
            found.compare("==", 3),
            lambda: f.pointer("x").store(total),
            lambda: f.pointer("x").store(f.vec(-1.0)),
        )

    f.for_each_task(f.index("tasks"), task)
    x = torch.arange(20.0)
    stop = torch.tensor([0, 0, 0, 1], dtype=torch.uint8)
    kernel = Kernel(f)
    kernel(threads=1, x=x, stop=stop, n=3, tasks=1)
    assert (x[: target.lanes] == ((1 * 2 + 2) * 2 + 1) * 2 + 0).all()
    kernel(threads=1, x=x, stop=torch.tensor([1], dtype=torch.uint8), n=0, tasks=1)
    assert (x[: target.lanes] == -1).all()


def test_kernels_compile_for_neon() -> None:
    import llvmlite.binding as llvm

    from mambabyte.ops.causal_conv import cpu_ir as conv
    from mambabyte.ops.selective_scan import cpu_ir as scan
    from mambabyte.ops.selective_scan import cpu_step_ir

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = target_for("generic", "+neon")
    machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(
        cpu=target.cpu, features="+neon"
    )
    variant = scan.Variant(states=16, element=BFLOAT, softplus=True, gate=True)
    conv_variant = conv.Variant(width=4, element=BFLOAT, silu=True, resets=True)
    written = [write(target, variant) for write in (scan.forward, scan.backward, cpu_step_ir.step)]
    written += [write(target, conv_variant) for write in (conv.forward, conv.backward, conv.step)]
    for source in written:
        code = compile_object(str(source.module), target, machine)
        assert code[:4] == b"\x7fELF", source.name
        assert code[18:20] == b"\xb7\x00", "not AArch64"
