"""One native call that reads bytes: the step of a whole ("mamba",) * n model, in the vocabulary of vector_ir.

A *column* is one byte of one sequence. A call reads any number of them, every layer for all columns before the next
layer, so that a weight is fetched once; columns of one sequence follow each other and pass the recurrent state on. Each
column is computed with the same operations in the same order whatever its neighbours are, so its bits do not depend on
them.

A vector holds a block of channels. Matrices are packed (groups of output blocks, inputs, blocks in a group, lanes)
and so read from end to end: a block adds up its weight vector times one input in every lane, and nothing is summed
across lanes. Threads share the groups of every matrix and meet at four barriers a layer. Everything is padded with
zeros to whole groups: there are no masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mambabyte.ops.target import Target
from mambabyte.ops.team import as_team, barrier
from mambabyte.ops.vector_ir import FLOAT, INDEX, Element, Function, Int, Pointer, Vec, arrays
from mambabyte.ops.vector_math import exp2, fma, sigmoid, softplus_and_slope, square_root, total

# Output blocks that one pass over the inputs adds up, and columns that share each weight vector. Two partial sums each,
# of even and odd inputs, hide the latency of the additions.
GROUP, COLUMNS_AT_ONCE = 4, 2
# Bytes that are asked for before they are used, and bytes that come at once.
AHEAD, LINE = 4096, 64


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the kernel is specialised on: D width, E inner width, N states, R rank of dt, W taps, V vocabulary."""

    D: int
    E: int
    N: int
    R: int
    W: int
    V: int
    layer_norm: bool
    norm_bias: bool
    eps: float
    element: Element
    scaled: bool


class Layout:
    """Named regions one after another in one array, in elements."""

    def __init__(self, **sizes: int):
        self.sizes, self.offsets, self.size = sizes, {}, 0
        for name, size in sizes.items():
            self.offsets[name] = self.size
            self.size += size

    def __getitem__(self, name: str) -> int:
        return self.offsets[name]


class Plan:
    """Where everything lies: a layer's matrices and parameters, a column's work space, a sequence's state."""

    def __init__(self, sizes: Sizes, lanes: int):
        self.sizes, self.lanes = sizes, lanes
        s = sizes
        outputs = {"D": s.D, "E": s.E, "V": s.V, "P": s.R + 2 * s.N}
        self.groups = {name: -(-size // (GROUP * lanes)) for name, size in outputs.items()}
        self.blocks = {name: GROUP * groups for name, groups in self.groups.items()}
        D, E, V, P = (self.blocks[name] * lanes for name in "DEVP")
        # (outputs, inputs) of every matrix; inputs are made even for the two partial sums
        self.matrices = {"in_x": (E, s.D), "in_z": (E, s.D), "select": (P, s.E), "dt": (E, s.R), "out": (D, s.E)}
        self.layer = Layout(**{name: rows * even(columns) for name, (rows, columns) in self.matrices.items()})
        scales = {f"{name}_scale": rows for name, (rows, _) in self.matrices.items()}
        self.parameters = Layout(norm=D, norm_bias=D, conv=E * s.W, conv_bias=E, dt_bias=E, A=E * s.N, skip=E, **scales)
        self.final = Layout(norm=D, norm_bias=D, head_scale=V)
        # the step reads one element past an odd number of inputs, times a zero weight
        self.work = Layout(stream=D, normed=D + lanes, x=E + lanes, z=E, select=P + lanes, dt=E, logits=V)
        self.state = Layout(ssm=E * s.N, conv=E * (s.W - 1))


def even(size: int) -> int:
    """The number itself or the next."""
    return size + size % 2


def step(target: Target, sizes: Sizes) -> Function:
    """Write the kernel.

    `before` and `after` say for every column in which slot of `states` it finds the state and in which it leaves it.
    `work` has plan.work.size elements for every column; logits are found there.
    """
    pointers = {"matrices": sizes.element, **arrays(FLOAT, "parameters", "embedding", "valid", "work", "states")}
    pointers |= arrays(INDEX, "ids", "before", "after", "team")
    f = Function("byte_step", target, pointers, ["columns", "layers"])
    as_team(f, lambda thread, threads: _Step(f, Plan(sizes, target.lanes), thread, threads).write())
    return f


class _Step:
    """Writes the parts of the step for one thread."""

    def __init__(self, f: Function, plan: Plan, thread: Int, threads: Int):
        self.f, self.plan, self.s, self.lanes = f, plan, plan.sizes, f.target.lanes
        self.columns, self.threads = f.index("columns"), threads
        self.shares = {
            name: (thread * groups // threads, (thread + 1) * groups // threads) for name, groups in plan.groups.items()
        }

    def write(self) -> None:
        f, plan = self.f, self.plan
        self._embed()
        self._meet()

        def layer(number: Int, _: list) -> list:
            matrices = f.pointer("matrices") + number * plan.layer.size
            p = f.pointer("parameters") + number * plan.parameters.size
            state = number * plan.state.size

            def multiply(name: str, source: str, share: str, use: Callable[[Int, Int, Vec], None]) -> None:
                scale = p + plan.parameters[f"{name}_scale"]
                self._multiply(matrices + plan.layer[name], scale, plan.matrices[name][1], source, share, use)

            self._normalise(p + plan.parameters["norm"], p + plan.parameters["norm_bias"])
            multiply("in_x", "normed", "E", self._keep("x"))
            multiply("in_z", "normed", "E", self._keep("z"))
            self._convolve(p, state)
            self._meet()
            multiply("select", "x", "P", self._keep("select"))
            self._meet()
            multiply("dt", "select", "E", self._keep("dt"))
            self._scan(p, state)
            self._meet()
            multiply("out", "x", "D", self._add_to_stream)
            self._meet()
            return []

        f.loop(0, f.index("layers"), [], layer)
        p = f.pointer("parameters") + f.index("layers") * plan.parameters.size
        self._normalise(p + plan.final["norm"], p + plan.final["norm_bias"])
        head = f.pointer("matrices") + f.index("layers") * plan.layer.size
        self._multiply(head, p + plan.final["head_scale"], self.s.D, "normed", "V", self._keep("logits"))

    def _meet(self) -> None:
        barrier(self.f, self.threads)

    def _at(self, name: str, column: Int | int) -> Pointer:
        """A region of a column's work space."""
        return self.f.pointer("work") + (self.f.number(column) * self.plan.work.size + self.plan.work[name])

    def _keep(self, name: str) -> Callable[[Int, Int, Vec], None]:
        return lambda block, column, value: (self._at(name, column) + block * self.lanes).store(value)

    def _add_to_stream(self, block: Int, column: Int, value: Vec) -> None:
        stream = self._at("stream", column) + block * self.lanes
        stream.store(stream.load() + value)

    def _own(self, share: str, body: Callable[[Int, Int], None]) -> None:
        """Run body(block, column) for this thread's blocks, the columns of a block in order."""

        def block(b: Int, _: list) -> list:
            def column(c: Int, _: list) -> list:
                body(b, c)
                return []

            self.f.loop(0, self.columns, [], column)
            return []

        first, last = self.shares[share]
        self.f.loop(first * GROUP, last * GROUP, [], block)

    def _embed(self) -> None:
        def one(block: Int, column: Int) -> None:
            row = (self.f.pointer("ids") + column).integer() * (self.plan.blocks["D"] * self.lanes)
            self._keep("stream")(block, column, (self.f.pointer("embedding") + row + block * self.lanes).load())

        self._own("D", one)

    def _normalise(self, weight: Pointer, bias: Pointer) -> None:
        """normed = the norm of the stream; every thread does all of it and writes the same values."""
        f, s, lanes, blocks = self.f, self.s, self.lanes, self.plan.blocks["D"]
        zero = f.vec(0.0)

        def column(c: Int, _: list) -> list:
            stream, normed = self._at("stream", c), self._at("normed", c)

            def centred(b: Int, mean: Vec) -> Vec:
                value = (stream + b * lanes).load()
                return (value - mean) * (f.pointer("valid") + b * lanes).load() if s.layer_norm else value

            mean = zero
            if s.layer_norm:
                mean = total(f.loop(0, blocks, [zero], lambda b, c: [c[0] + (stream + b * lanes).load()])[0]) * (
                    1 / s.D
                )

            def square(b: Int, carry: list) -> list:
                value = centred(b, mean)
                return [fma(value, value, carry[0])]

            factor = 1.0 / square_root(total(f.loop(0, blocks, [zero], square)[0]) * (1 / s.D) + s.eps)

            def write(b: Int, _: list) -> list:
                value = centred(b, mean) * factor * (weight + b * lanes).load()
                if s.norm_bias:
                    value = value + (bias + b * lanes).load()
                (normed + b * lanes).store(value)
                return []

            f.loop(0, blocks, [], write)
            return []

        f.loop(0, self.columns, [], column)

    def _multiply(
        self,
        matrix: Pointer,
        scale: Pointer,
        inputs: int,
        source: str,
        share: str,
        use: Callable[[Int, Int, Vec], None],
    ) -> None:
        """use(block, column, matrix @ source) for this thread's output blocks and all columns."""
        f = self.f

        whole = self.columns // COLUMNS_AT_ONCE

        def group(number: Int, _: list) -> list:
            def several(i: Int, _: list) -> list:
                self._dot(matrix, scale, inputs, source, number, i * COLUMNS_AT_ONCE, COLUMNS_AT_ONCE, use)
                return []

            def one(column: Int, _: list) -> list:
                self._dot(matrix, scale, inputs, source, number, column, 1, use)
                return []

            f.loop(0, whole, [], several)
            f.loop(whole * COLUMNS_AT_ONCE, self.columns, [], one)
            return []

        f.loop(*self.shares[share], [], group)

    def _dot(
        self,
        matrix: Pointer,
        scale: Pointer,
        inputs: int,
        source: str,
        group: Int,
        column: Int,
        columns: int,
        use: Callable[[Int, Int, Vec], None],
    ) -> None:
        f, lanes = self.f, self.lanes
        sources = [self._at(source, column + c) for c in range(columns)]
        weights = matrix + group * (even(inputs) * GROUP * lanes)

        def pair(i: Int, sums: list[Vec]) -> list[Vec]:
            new: list[Vec] = []
            for parity in range(2):
                values = [(x + i * 2 + parity).splat() for x in sources]
                here = weights + (i * 2 + parity) * (GROUP * lanes)
                for ahead in range(AHEAD, AHEAD + GROUP * lanes * matrix.element.size, LINE):
                    (here + ahead // matrix.element.size).prefetch()
                for k in range(GROUP):
                    weight = (here + k * lanes).load()
                    new += [fma(weight, value, sums[len(new) + c]) for c, value in enumerate(values)]
            return new

        half = GROUP * columns
        sums = f.loop(0, even(inputs) // 2, [f.vec(0.0)] * (2 * half), pair)
        for k in range(half):
            at = group * GROUP + k // columns
            value = sums[k] + sums[half + k]
            if self.s.scaled:
                value = value * (scale + at * lanes).load()
            use(at, column + k % columns, value)

    def _convolve(self, p: Pointer, layer_state: Int) -> None:
        """x = silu(conv(x)) for this thread's channels, and their last W - 1 inputs."""
        s, lanes, plan = self.s, self.lanes, self.plan

        def one(block: Int, column: Int) -> None:
            offset = layer_state + plan.state["conv"] + block * ((s.W - 1) * lanes)
            past, kept = (self._state(name, column) + offset for name in ("before", "after"))
            x = self._at("x", column) + block * lanes
            weight = p + plan.parameters["conv"] + block * (s.W * lanes)
            taps = [*((past + w * lanes).load() for w in range(s.W - 1)), x.load()]
            value = (p + plan.parameters["conv_bias"] + block * lanes).load()
            for w, tap in enumerate(taps):
                value = fma(tap, (weight + w * lanes).load(), value)
            x.store(value * sigmoid(value))
            for w, tap in enumerate(taps[1:]):
                (kept + w * lanes).store(tap)

        self._own("E", one)

    def _scan(self, p: Pointer, layer_state: Int) -> None:
        """x = (C h + D x) silu(z) with h = exp(delta A) h + delta x B, for this thread's channels."""
        s, lanes, plan = self.s, self.lanes, self.plan

        def one(block: Int, column: Int) -> None:
            here = block * lanes
            offset = layer_state + plan.state["ssm"] + block * (s.N * lanes)
            past, kept = (self._state(name, column) + offset for name in ("before", "after"))
            A = p + plan.parameters["A"] + block * (s.N * lanes)
            x, z = ((self._at(name, column) + here).load() for name in "xz")
            B = self._at("select", column) + s.R
            bias, skip = ((p + plan.parameters[name] + here).load() for name in ("dt_bias", "skip"))
            delta, _ = softplus_and_slope((self._at("dt", column) + here).load() + bias)
            u = delta * x
            y = [skip * x, self.f.vec(0.0)]
            for n in range(s.N):
                h = fma(exp2(delta * (A + n * lanes).load()), (past + n * lanes).load(), u * (B + n).splat())
                (kept + n * lanes).store(h)
                y[n % 2] = fma(h, (B + s.N + n).splat(), y[n % 2])
            (self._at("x", column) + here).store((y[0] + y[1]) * (z * sigmoid(z)))

        self._own("E", one)

    def _state(self, which: str, column: Int) -> Pointer:
        slot = (self.f.pointer(which) + column).integer()
        return self.f.pointer("states") + slot * (self.f.index("layers") * self.plan.state.size)
