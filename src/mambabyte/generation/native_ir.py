"""One native call that reads bytes: the step of a whole ("mamba",) * n model, in the vocabulary of vector_ir.

A *column* is one byte of one sequence. A call reads any number of them, every layer for all columns before the next
layer, so that a weight is fetched once; columns of one sequence follow each other and pass the recurrent state on. Each
column is computed with the same operations in the same order whatever its neighbours are, so its bits do not depend on
them.

A vector holds a block of channels; `native_weights` packs and multiplies matrices. Threads share the groups of blocks
of every matrix and meet at four barriers a layer. Everything is padded with zeros to whole groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mambabyte.generation.native_weights import KINDS, Bytes, Column, Matrix
from mambabyte.ops.target import Target
from mambabyte.ops.team import as_team, barrier
from mambabyte.ops.vector_ir import Function
from mambabyte.ops.vector_math import exp2, fma, sigmoid, softplus_and_slope, square_root, total
from mambabyte.ops.vector_values import FLOAT, INDEX, Int, Pointer, Vec, arrays

# Blocks in a group, where there are enough for two threads. So many columns share each weight that is loaded, as long
# as that many are left, with as many blocks as keep all sums in registers.
GROUP, COLUMNS_AT_ONCE, SUMS = 4, (4, 2, 1), 8


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
    weights: str


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
        self.sizes, self.lanes, self.kind = sizes, lanes, KINDS[sizes.weights]
        s = sizes
        self.group, self.groups = {}, {}
        for name, size in {"D": s.D, "E": s.E, "V": s.V, "P": s.R + 2 * s.N}.items():
            blocks = -(-size // lanes)
            self.group[name] = min(GROUP, max(1, blocks // 2))
            self.groups[name] = -(-blocks // self.group[name])
        self.blocks = {name: self.group[name] * groups for name, groups in self.groups.items()}
        D, E, V, P = (self.blocks[name] * lanes for name in "DEVP")
        # which outputs, and the number of inputs, of every matrix
        self.matrices = {"in_x": ("E", s.D), "in_z": ("E", s.D), "select": ("P", s.E), "dt": ("E", s.R)}
        self.matrices |= {"out": ("D", s.E), "head": ("V", s.D)}
        rows = {name: self.blocks[outputs] * lanes for name, (outputs, _) in self.matrices.items()}
        words = {name: rows[name] * self.kind.words(inputs) for name, (_, inputs) in self.matrices.items()}
        of_rows = {name: {f"{name}_{what}": rows[name] for what in self.kind.parameters} for name in rows}
        head = of_rows.pop("head")
        self.layer = Layout(**{name: size for name, size in words.items() if name != "head"})
        self.parameters = Layout(
            norm=D, norm_bias=D, conv=E * s.W, conv_bias=E, dt_bias=E, A=E * s.N, skip=E,
            **{name: size for sizes_of in of_rows.values() for name, size in sizes_of.items()},
        )  # fmt: skip
        self.final = Layout(norm=D, norm_bias=D, **head)
        # a step reads one element past an odd number of inputs, times a zero weight
        kind = self.kind
        room = max(kind.room(inputs, lanes) if isinstance(kind, Bytes) else 0 for _, inputs in self.matrices.values())
        self.work = Layout(stream=D, x=E + lanes, z=E, select=P + lanes, dt=E, logits=V)
        # what every thread computes for itself: writing to each other's would cost more than computing it again
        self.own = Layout(normed=D + lanes, room=-(-room // lanes) * lanes)
        self.state = Layout(ssm=E * s.N, conv=E * (s.W - 1))


def step(target: Target, sizes: Sizes) -> Function:
    """Write the kernel.

    `before` and `after` say for every column in which slot of `states` it finds the state and in which it leaves it.
    `work` has plan.work.size elements for every column, and logits are found there; `own` has plan.own.size elements
    for every column of every thread.
    """
    pointers = arrays(FLOAT, "matrices", "parameters", "embedding", "valid", "work", "own", "states")
    pointers |= arrays(INDEX, "ids", "before", "after", "team")
    f = Function("byte_step", target, pointers, ["columns", "layers"])
    as_team(f, lambda thread, threads: _Step(f, Plan(sizes, target.lanes), thread, threads).write())
    return f


class _Step:
    """Writes the parts of the step for one thread."""

    def __init__(self, f: Function, plan: Plan, thread: Int, threads: Int):
        self.f, self.plan, self.s, self.lanes = f, plan, plan.sizes, f.target.lanes
        self.columns, self.thread, self.threads = f.index("columns"), thread, threads
        self.shares = {
            name: (thread * groups // threads, (thread + 1) * groups // threads) for name, groups in plan.groups.items()
        }

    def write(self) -> None:
        f, plan = self.f, self.plan
        self._embed()
        self._meet()

        def layer(number: Int, _: list) -> list:
            words = f.pointer("matrices") + number * plan.layer.size
            p = f.pointer("parameters") + number * plan.parameters.size
            state = number * plan.state.size

            def multiply(name: str, source: str, use: Callable[[Int, Int, Vec], None]) -> None:
                matrix = self._matrix(name, words + plan.layer[name], p, plan.parameters)
                self._multiply(matrix, plan.matrices[name][0], source, use)

            self._normalise(p + plan.parameters["norm"], p + plan.parameters["norm_bias"])
            self._prepare("normed", self.s.D)
            multiply("in_x", "normed", self._keep("x"))
            multiply("in_z", "normed", self._keep("z"))
            self._convolve(p, state)
            self._meet()
            self._prepare("x", self.s.E)
            multiply("select", "x", self._keep("select"))
            self._meet()
            self._prepare("select", self.s.R)
            multiply("dt", "select", self._keep("dt"))
            self._scan(p, state)
            self._meet()
            self._prepare("x", self.s.E)
            multiply("out", "x", self._add_to_stream)
            self._meet()
            return []

        f.loop(0, f.index("layers"), [], layer)
        p = f.pointer("parameters") + f.index("layers") * plan.parameters.size
        self._normalise(p + plan.final["norm"], p + plan.final["norm_bias"])
        self._prepare("normed", self.s.D)
        head = self._matrix("head", f.pointer("matrices") + f.index("layers") * plan.layer.size, p, plan.final)
        self._multiply(head, "V", "normed", self._keep("logits"))

    def _matrix(self, name: str, words: Pointer, parameters: Pointer, layout: Layout) -> Matrix:
        outputs, inputs = self.plan.matrices[name]
        of_rows = {what: parameters + layout[f"{name}_{what}"] for what in self.plan.kind.parameters}
        return Matrix(words, of_rows, inputs, self.plan.group[outputs])

    def _meet(self) -> None:
        barrier(self.f, self.threads, self.columns)

    def _at(self, name: str, column: Int | int) -> Pointer:
        """A region of a column's work space, or of this thread's own for it."""
        if name in self.plan.own.sizes:
            number = self.thread * self.columns + column
            return self.f.pointer("own") + (number * self.plan.own.size + self.plan.own[name])
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
        group = self.plan.group[share]
        self.f.loop(first * group, last * group, [], block)

    def _embed(self) -> None:
        def one(block: Int, column: Int) -> None:
            row = (self.f.pointer("ids") + column).integer() * (self.plan.blocks["D"] * self.lanes)
            self._keep("stream")(block, column, (self.f.pointer("embedding") + row + block * self.lanes).load())

        self._own("D", one)

    def _normalise(self, weight: Pointer, bias: Pointer) -> None:
        """normed = the norm of the stream; every thread does all of it for itself."""
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

    def _prepare(self, source: str, inputs: int) -> None:
        """Round what `Bytes` will multiply; every thread does all of it for itself."""
        kind = self.plan.kind

        def column(c: Int, _: list) -> list:
            assert isinstance(kind, Bytes)
            kind.prepare(self._at(source, c), self._at("room", c), inputs)
            return []

        if isinstance(kind, Bytes):
            self.f.loop(0, self.columns, [], column)

    def _multiply(self, matrix: Matrix, share: str, source: str, use: Callable[[Int, Int, Vec], None]) -> None:
        """use(block, column, matrix @ source) for this thread's output blocks and all columns."""
        f = self.f

        def group(number: Int, _: list) -> list:
            def together(first: Int, count: int, blocks: Sequence[int]) -> list:
                columns = [Column(self._at(source, first + c), self._at("room", first + c)) for c in range(count)]
                first_block = number * matrix.group
                self.plan.kind.multiply(
                    matrix, number, blocks, columns, lambda k, c, value: use(first_block + k, first + c, value)
                )
                return []

            done: Int | int = 0
            for count in COLUMNS_AT_ONCE:
                end = self.columns // count
                for first in range(0, matrix.group, SUMS // count):
                    blocks = range(first, min(first + SUMS // count, matrix.group))

                    def some(i: Int, _: list, count: int = count, blocks: Sequence[int] = blocks) -> list:
                        return together(i * count, count, blocks)

                    f.loop(f.number(done) // count, end, [], some)
                done = end * count
            return []

        f.loop(*self.shares[share], [], group)

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
