"""How the native step's matrices lie in memory and are multiplied, for each type of weights.

A matrix (outputs, inputs) is cut into blocks of `lanes` outputs and groups of blocks. It lies in words of 32 bits, each
the weights of one output for as many neighbouring inputs as fit, in the order in which they are read: (groups, inputs /
those in a word, blocks of a group, lanes). The sum over inputs is two partial sums, of even and odd inputs or of high
and low bytes, that hide the latency of each other's additions; nothing is summed across lanes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mambabyte.ops.vector_math import absolute, fma, largest, maximum, total
from mambabyte.ops.vector_values import BYTE, FLOAT, Int, Ints, Pointer, Vec

# Bytes that are asked for before they are used, and bytes that come at once.
AHEAD, LINE = 4096, 64


@dataclass(frozen=True)
class Matrix:
    """A matrix in the kernel: its words, parameters of its outputs, its number of inputs, blocks in a group."""

    words: Pointer
    parameters: dict[str, Pointer]
    inputs: int
    group: int


@dataclass(frozen=True)
class Column:
    """The inputs of one column, and room for what `Bytes` makes of them."""

    inputs: Pointer
    room: Pointer


Use = Callable[[int, int, Vec], None]


class Floats:
    """Weights of a float type, used as float32."""

    parameters: tuple[str, ...] = ()

    def __init__(self, dtype: torch.dtype):
        self.dtype, self._inputs = dtype, FLOAT.size // dtype.itemsize

    def words(self, inputs: int) -> int:
        """Words of one output."""
        return -(-inputs // 2) * 2 // self._inputs

    def store(self, matrix: Tensor, inputs: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Words (outputs, words of one) int32 of a float32 matrix, and its parameters by name (outputs,)."""
        padded = torch.nn.functional.pad(matrix, (0, self.words(inputs) * self._inputs - inputs))
        return padded.to(self.dtype).contiguous().view(torch.int32), {}

    def multiply(self, matrix: Matrix, group: Int, blocks: Sequence[int], columns: Sequence[Column], use: Use) -> None:
        """use(block, number of the column, sum of the products) for some blocks of a group and each column."""
        f = matrix.words.f
        lanes, step = f.target.lanes, matrix.group * f.target.lanes
        words = matrix.words + group * (self.words(matrix.inputs) * step)
        loads = 2 // self._inputs
        half = len(blocks) * len(columns)

        def pair(i: Int, sums: list[Vec]) -> list[Vec]:
            here = words + i * (loads * step)
            fetch(here, AHEAD, loads * step)
            inputs = [[(column.inputs + i * 2 + parity).splat() for column in columns] for parity in range(2)]
            new = list(sums)
            for at_block, k in enumerate(blocks):
                loaded = [(here + load * step + k * lanes).load() for load in range(loads)]
                for parity, weight in enumerate(w for word in loaded for w in self._weights(word)):
                    for c, value in enumerate(inputs[parity]):
                        at = parity * half + at_block * len(columns) + c
                        new[at] = fma(weight, value, new[at])
            return new

        sums = f.loop(0, -(-matrix.inputs // 2), [f.vec(0.0)] * (2 * half), pair)
        for at, (k, c) in enumerate(itertools.product(blocks, range(len(columns)))):
            use(k, c, sums[at] + sums[half + at])

    def _weights(self, word: Vec) -> list[Vec]:
        """The weights of the neighbouring inputs in a word: a bfloat16 is the upper half of a float32."""
        if self.dtype == torch.float32:
            return [word]
        bits = word.bits()
        return [bits.shift_left(16).as_floats(), bits.mask(0xFFFF0000).as_floats()]


class Bytes:
    """Weights of 8 bits with a scale for each output; inputs are rounded to 16 bits with a scale for each column.

    An input q from -32767 to 32767 is 256 h + l - 32768 with bytes h and l from 0 to 255. The products of four weights
    with four bytes are added up by one instruction where the CPU has it, and exactly: sums are integers, below 2^31 for
    up to 65,000 inputs. With weights w, sum w q = 256 (sum w h - 128 sum w) + sum w l; `offset` is -128 sum w. What
    comes from NaN or infinity, of a row's weights or a column's inputs, is NaN.
    """

    parameters = ("scale", "offset")
    LEVELS, INPUT_LEVELS = 127, 32767

    def words(self, inputs: int) -> int:
        """Words of one output."""
        return -(-inputs // 4)

    def store(self, matrix: Tensor, inputs: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Floats.store`."""
        scale = matrix.abs().amax(1).clamp(min=1e-30) / self.LEVELS
        levels = (matrix / scale[:, None]).round().nan_to_num(0.0)  # of a row with NaN or infinity the scale says so
        levels = torch.nn.functional.pad(levels, (0, 4 * self.words(inputs) - inputs))
        words = levels.to(torch.int8).contiguous().view(torch.int32)
        return words, {"scale": scale, "offset": -128 * levels.sum(1)}

    def room(self, inputs: int, lanes: int) -> int:
        """Floats of work space for a column's inputs: their high bytes, their low bytes, their scale."""
        return 2 * self._bytes(inputs, lanes) // FLOAT.size + lanes

    def prepare(self, source: Pointer, room: Pointer, inputs: int) -> None:
        """Write a column's inputs into its room. What lies there behind them meets weights of zero."""
        f, lanes = source.f, source.f.target.lanes
        whole, rest = inputs // lanes * lanes, inputs % lanes

        def each(carry: list[Vec], body: Callable[[Int, Vec, list[Vec]], list[Vec]]) -> list[Vec]:
            carry = f.loop(0, whole // lanes, carry, lambda b, c: body(b * lanes, (source + b * lanes).load(), c))
            if not rest:
                return carry
            return body(f.number(whole), (source + whole).load(f.mask_below(f.number(rest))), carry)

        def measure(_: Int, value: Vec, carry: list[Vec]) -> list[Vec]:
            return [maximum(absolute(value), carry[0]), fma(value, 0.0, carry[1])]

        size, odd = each([f.vec(1e-30), f.vec(0.0)], measure)
        size, odd = largest(size), total(odd)  # NaN if any input is NaN or infinite, else 0
        levels = self.INPUT_LEVELS / size
        high, low, scale = self._places(room, inputs)

        def split(at: Int, value: Vec, _: list[Vec]) -> list[Vec]:
            scaled = value * levels
            level = f.select(scaled.compare("==", scaled), scaled, f.vec(0.0)).rounded().plus(1 << 15)
            level.shift_right(8).store_bytes(high + at)
            level.store_bytes(low + at)
            return []

        each([], split)
        scale.store(size * (1 / self.INPUT_LEVELS) + odd)

    def multiply(self, matrix: Matrix, group: Int, blocks: Sequence[int], columns: Sequence[Column], use: Use) -> None:
        """See `Floats.multiply`."""
        f = matrix.words.f
        lanes, step, steps = f.target.lanes, matrix.group * f.target.lanes, self.words(matrix.inputs)
        words = matrix.words + group * (steps * step)
        places = [self._places(column.room, matrix.inputs) for column in columns]
        offset, scale = (matrix.parameters[name] + group * step for name in ("offset", "scale"))
        half = len(blocks) * len(columns)

        def four(i: Int, sums: list[Ints]) -> list[Ints]:
            here = words + i * step
            fetch(here, AHEAD, step)
            inputs = [[(place[part] + i * 4).splat_word() for place in places] for part in range(2)]
            new = list(sums)
            for at_block, k in enumerate(blocks):
                weights = (here + k * lanes).load().bits()
                for part in range(2):
                    for c, value in enumerate(inputs[part]):
                        at = part * half + at_block * len(columns) + c
                        new[at] = f.add_products_of_bytes(new[at], value, weights)
            return new

        pairs = list(itertools.product(blocks, range(len(columns))))
        start = [(offset + k * lanes).load().rounded() for k, _ in pairs] + [f.vec(0.0).rounded()] * half
        sums = [each.to_floats() for each in f.loop(0, steps, start, four)]
        for at, (k, c) in enumerate(pairs):
            scales = (scale + k * lanes).load() * places[c][2].load()
            use(k, c, fma(sums[at], 256.0, sums[half + at]) * scales)

    def _places(self, room: Pointer, inputs: int) -> tuple[Pointer, Pointer, Pointer]:
        """Where in a column's room the high bytes, the low bytes and the scale are."""
        size = self._bytes(inputs, room.f.target.lanes)
        as_bytes = room.of(BYTE)
        return as_bytes, as_bytes + size, room + 2 * size // FLOAT.size

    def _bytes(self, inputs: int, lanes: int) -> int:
        return -(-inputs // lanes) * lanes


def fetch(start: Pointer, ahead: int, words: int) -> None:
    """Ask for so many words, so many bytes after `start`."""
    for distance in range(ahead, ahead + words * FLOAT.size, LINE):
        (start + distance // FLOAT.size).prefetch()


KINDS: dict[str, Floats | Bytes] = {
    "float32": Floats(torch.float32),
    "bfloat16": Floats(torch.bfloat16),
    "int8": Bytes(),
}
