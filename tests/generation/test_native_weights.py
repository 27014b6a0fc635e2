"""Matrices of every type of weights, stored and multiplied: as exact as float32, whatever the sizes and the CPU."""

import dataclasses
import re

import pytest
import torch

from mambabyte.generation.native_weights import KINDS, Bytes, Column, Matrix
from mambabyte.ops.native import Kernel
from mambabyte.ops.target import Target, host_target, target_for
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_values import FLOAT, Int, arrays

GROUP, GROUPS = 2, 3
ROOM = 1000


def targets() -> dict[str, Target]:
    host = host_target()
    portable = target_for(host.cpu, re.sub(r"\+avx512", "-avx512", host.features))
    return {
        "host": host,
        "without AVX-512": portable,
        "without products of bytes": dataclasses.replace(portable, byte_products=None),
    }


def product(kind: str, target: Target, inputs: int, columns: int) -> Function:
    """y (columns, outputs) = the matrix times x (columns, inputs), each column with a place for what follows it."""
    f = Function("product", target, arrays(FLOAT, "words", "scale", "offset", "x", "room", "y"), ["tasks"])
    weights, lanes = KINDS[kind], target.lanes
    parameters = {name: f.pointer(name) for name in ("scale", "offset")}
    matrix = Matrix(f.pointer("words"), parameters, inputs, GROUP)
    pairs = [Column(f.pointer("x") + c * (inputs + lanes), f.pointer("room") + c * ROOM) for c in range(columns)]

    def task(_: Int) -> None:
        if isinstance(weights, Bytes):
            for column in pairs:
                weights.prepare(column.inputs, column.room, inputs)

        def group(number: Int, _: list) -> list:
            weights.multiply(
                matrix,
                number,
                range(GROUP),
                pairs,
                lambda k, c, value: (
                    f.pointer("y") + c * (GROUPS * GROUP * lanes) + (number * GROUP + k) * lanes
                ).store(value),
            )
            return []

        f.loop(0, GROUPS, [], group)

    f.for_each_task(f.index("tasks"), task)
    return f


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inputs", "columns"), [(1, 1), (3, 2), (16, 1), (33, 2), (70, 2)])
def test_product(kind: str, target: str, inputs: int, columns: int) -> None:
    chosen = targets()[target]
    g = torch.Generator().manual_seed(inputs)
    outputs = GROUPS * GROUP * chosen.lanes
    matrix = torch.randn(outputs, inputs, generator=g)
    # behind its inputs a column has others, larger ones, that must not count
    x = torch.full((columns, inputs + chosen.lanes), 1e6)
    x[:, :inputs] = torch.randn(columns, inputs, generator=g) * torch.tensor([[3.0], [1e-3]])[:columns]
    words, of_rows = KINDS[kind].store(matrix, inputs)
    y = torch.zeros(columns, outputs)
    Kernel(product(kind, chosen, inputs, columns))(
        threads=1,
        words=words.view(GROUPS, GROUP, chosen.lanes, -1).permute(0, 3, 1, 2).contiguous(),
        scale=of_rows.get("scale"),
        offset=of_rows.get("offset"),
        x=x,
        room=torch.full((columns, ROOM), float("nan")),
        y=y,
        tasks=1,
    )
    kept, rounded = x[:, :inputs].double(), matrix.double()
    if kind == "bfloat16":
        rounded = matrix.bfloat16().double()
    if kind == "int8":
        kept, rounded = (to_levels(t, levels) for t, levels in ((kept, 32767), (rounded, 127)))
    exact = kept @ rounded.T
    assert (y - exact).abs().max(1).values.lt(1e-6 * (kept.abs() @ rounded.abs().T).max(1).values).all()


def to_levels(t: torch.Tensor, levels: int) -> torch.Tensor:
    """Each row rounded to whole multiples of its largest magnitude over `levels`."""
    scale = t.abs().amax(1, keepdim=True) / levels
    return (t / scale).round() * scale


def test_a_column_of_zeros() -> None:
    target = host_target()
    words, of_rows = KINDS["int8"].store(torch.ones(GROUPS * GROUP * target.lanes, 4), 4)
    y = torch.ones(GROUPS * GROUP * target.lanes)
    Kernel(product("int8", target, 4, 1))(
        threads=1, words=words, x=torch.zeros(4 + target.lanes), room=torch.zeros(ROOM), y=y, tasks=1, **of_rows
    )
    assert torch.equal(y, torch.zeros_like(y))
