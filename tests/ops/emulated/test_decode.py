"""The decoding kernels, thread by thread on a CPU: the ops in float64, and the same bits however bytes are read."""

import dataclasses

import pytest
import torch
from torch import Tensor

from mambabyte.ops import causal_conv_step, norm, selective_scan_step
from mambabyte.ops.decode import persistent, wide
from mambabyte.ops.decode.pack import LayerWeights, pack
from mambabyte.ops.decode.sizes import BLOCK_BYTES, Sizes
from tests import emulator
from tests.emulator import gpu

SHARED_LIMIT = 227 * 1024
CPU = torch.device("cpu")
# (byte, slot before, slot after): two sequences of one byte around one of six.
COLUMNS = [(66, 1, 9), (65, 0, 3), (200, 3, 4), (3, 4, 5), (0, 5, 6), (32, 6, 7), (97, 7, 8), (255, 2, 2)]


def sequences(*lengths: int) -> list[tuple[int, int, int]]:
    """Columns of sequences of these lengths, each from a slot of its own on; slot 0 is nobody's."""
    columns, slot = [], 0
    for length in lengths:
        slot += 1
        for _ in range(length):
            columns.append((slot * 37 % 256, slot, slot + 1))
            slot += 1
    return columns


# Sizes that fill neither tiles nor slices, and rings of weights that wrap.
SIZES = Sizes(
    D=136, E=520, N=5, R=9, W=2, V=300, layers=2, layer_norm=True, norm_bias=True, eps=1e-3, dtype=torch.float16
)


# Sizes whose channels, states and selected values lie in whole quads, and sizes where none do.
QUADS = dataclasses.replace(SIZES, D=12, E=36, N=8, R=8, W=4, V=256, layers=1, dtype=torch.bfloat16)
ODD = dataclasses.replace(SIZES, D=7, E=37, N=3, R=7, W=3, V=256, layers=1, layer_norm=False)


class Stack:
    """Random layers of these sizes, as tensors and as the kernels read them, random states in slots, and columns."""

    def __init__(self, sizes: Sizes, columns: list[tuple[int, int, int]] = COLUMNS) -> None:
        g = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=g) * scale

        s, self.columns = sizes, columns
        self.sizes, slots = sizes, 1 + max(max(before, after) for _, before, after in columns)
        bias = (lambda: normal(s.D, scale=0.1)) if s.norm_bias else lambda: None
        self.layers = [
            LayerWeights(
                norm=1 + normal(s.D, scale=0.1),
                norm_bias=bias(),
                in_proj=normal(2 * s.E, s.D, scale=s.D**-0.5).to(s.dtype),
                conv_weight=normal(s.E, s.W, scale=0.5),
                conv_bias=normal(s.E, scale=0.1),
                x_proj=normal(s.R + 2 * s.N, s.E, scale=s.E**-0.5).to(s.dtype),
                dt_proj=normal(s.E, s.R, scale=0.5).to(s.dtype),
                dt_bias=normal(s.E) - 2,
                A=-torch.rand(s.E, s.N, generator=g) * s.N,
                D=normal(s.E),
                out_proj=normal(s.D, s.E, scale=s.E**-0.5).to(s.dtype),
            )
            for _ in range(s.layers)
        ]
        self.norm, self.norm_bias = 1 + normal(s.D, scale=0.1), bias()
        self.embedding, self.head = normal(s.V, s.D).to(s.dtype).float(), normal(s.V, s.D, scale=s.D**-0.5).to(s.dtype)
        self.packed = pack(s, self.layers, self.norm, self.norm_bias, self.embedding, self.head)
        self.ssm = torch.zeros(slots, s.layers, s.E, s.N_pitch)
        self.ssm[..., : s.N] = normal(slots, s.layers, s.E, s.N)
        self.conv = normal(slots, s.layers, s.E, s.W - 1).to(s.dtype).float()

    def fresh(self) -> "Results":
        """The states before a read, and logits that nobody has written."""
        logits = torch.full((len(self.columns), self.sizes.V), torch.nan)
        return Results(logits=logits, ssm=self.ssm.clone(), conv=self.conv.clone())


@dataclasses.dataclass
class Results:
    """What a read leaves."""

    logits: Tensor
    ssm: Tensor
    conv: Tensor

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Results)
        return all(torch.equal(a, b) for a, b in zip(vars(self).values(), vars(other).values(), strict=True))


def exact(stack: Stack) -> Results:
    """By the references in float64, a byte after the other."""
    s, results = stack.sizes, stack.fresh()
    ssm, conv = results.ssm.double(), results.conv.double()
    options = {"eps": s.eps, "kind": "layer" if s.layer_norm else "rms", "backend": "reference"}
    results.logits = results.logits.double()
    for column, (byte, before, after) in enumerate(stack.columns):
        stream = stack.embedding[byte].double()[None]
        for i, layer in enumerate(stack.layers):
            w = {name: t if t is None else t.double() for name, t in vars(layer).items()}
            h, past = ssm[before, i, None, :, : s.N].clone(), conv[before, i].T[None].clone()
            x, z = (norm(stream, w["norm"], w["norm_bias"], **options)[0] @ w["in_proj"].T).chunk(2, 1)
            u = causal_conv_step(past, x, w["conv_weight"], w["conv_bias"], backend="reference")
            dt, B, C = (u @ w["x_proj"].T).split([s.R, s.N, s.N], 1)
            parameters = {"D": w["D"], "z": z, "dt_bias": w["dt_bias"], "backend": "reference"}
            y = selective_scan_step(h, u, dt @ w["dt_proj"].T, w["A"], B, C, **parameters)
            stream = stream + y @ w["out_proj"].T
            ssm[after, i, :, : s.N], conv[after, i] = h[0], past[0].T
        y, _ = norm(
            stream, stack.norm.double(), None if stack.norm_bias is None else stack.norm_bias.double(), **options
        )
        results.logits[column] = (y @ stack.head.double().T)[0]
    results.ssm, results.conv = ssm, conv
    return results


def few(stack: Stack, capacity: int, *, seed: int = 0, blocks: int = 10) -> Results:
    """By the persistent kernel, at most so many columns a launch, with the shortest ring of weights."""
    results, s = stack.fresh(), stack.sizes
    cut = persistent.Cut.of(s, blocks, SHARED_LIMIT, columns=capacity)
    cut = dataclasses.replace(cut, shared_limit=cut.shared - (cut.stages - 2) * persistent.WARPS * BLOCK_BYTES)
    assert cut.fits
    assert cut.stages == 2
    kernel = emulator.get(persistent.SOURCES, persistent.KERNEL, **cut.defines)
    mail = persistent.Mail(s, capacity, CPU)
    for start in range(0, len(stack.columns), capacity):
        logits = results.logits[start : start + capacity]
        model = persistent.model(stack.packed, mail, results.ssm, results.conv, logits, s.layers)
        batch = persistent.batch(*zip(*stack.columns[start : start + capacity], strict=True), capacity=capacity)
        memory = [v for owner in (stack.packed, mail, results) for v in vars(owner).values() if isinstance(v, Tensor)]
        arguments = (model, batch, mail.next_tag())
        options = {"shared": cut.shared, "seed": seed, "races": True, "memory": memory}
        kernel((cut.blocks,), persistent.THREADS, *arguments, **options)
    return results


def many(stack: Stack, *, seed: int = 0, warpgroups: bool = False) -> Results:
    """By the kernels for many columns."""
    results, s = stack.fresh(), stack.sizes
    plan = wide.Wide(s, len(stack.columns), s.V, CPU, warpgroups=warpgroups)
    ids, before, after = zip(*stack.columns, strict=True)
    batch = [*ids, *wide.begins(before, after), *after]
    plan.batch.copy_(torch.tensor(batch, dtype=torch.int32))
    plan.logits.fill_(torch.nan)
    with pytest.MonkeyPatch.context() as patch:
        gpu.pretend(patch, seed=seed, races=True)
        plan.run(stack.packed, results.ssm, results.conv)
    results.logits = plan.logits
    return results


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack(SIZES)


def test_values_and_states(stack: Stack) -> None:
    ours, truth = few(stack, len(COLUMNS)), exact(stack)
    for name, value in vars(truth).items():
        error = (getattr(ours, name)[..., : value.shape[-1]].double() - value).norm() / value.norm()
        assert error <= 3e-3, f"{name}: relative error {error:.1e}"


def test_the_same_bits_by_the_byte_and_by_many(stack: Stack) -> None:
    together = few(stack, len(COLUMNS))
    assert few(stack, 1, blocks=3, seed=1) == together
    assert many(stack) == together
    assert many(stack, warpgroups=True) == together


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_bits_in_any_order_of_events(stack: Stack, seed: int) -> None:
    assert few(stack, len(COLUMNS), seed=seed) == few(stack, len(COLUMNS))
    for warpgroups in (False, True):
        assert many(stack, seed=seed, warpgroups=warpgroups) == many(stack)


@pytest.mark.parametrize(("blocks", "tiles"), [(1, 16), (10, 8), (20, 4)])
def test_the_same_bits_by_thread_blocks_of_any_size(
    stack: Stack, blocks: int, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = many(stack)
    monkeypatch.setattr(wide, "BLOCKS", blocks)
    for warpgroups, most in ((False, 8), (True, 16)):
        plan = wide.Wide(SIZES, len(COLUMNS), SIZES.V, CPU, warpgroups=warpgroups)
        assert plan.defines["IN_TILES"] == min(tiles, most)
        assert many(stack, warpgroups=warpgroups) == alone


@pytest.mark.parametrize("sizes", [QUADS, ODD], ids=["quads", "odd"])
@pytest.mark.parametrize("blocks", [1, 128])
def test_the_same_bits_where_sequences_cross_blocks_of_columns(
    sizes: Sizes, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence begins in a block's last column, one crosses several blocks; no memory follows the last column's."""
    stack = Stack(sizes, sequences(1, 1, 2, 3, 24, 27, 2, 1, 3))
    assert len(stack.columns) == wide.GROUP
    monkeypatch.setattr(wide, "BLOCKS", blocks)
    together = few(stack, 8)
    for seed in (0, 1):
        assert many(stack, seed=seed) == together


def test_tags_begin_anew_before_they_wrap_around() -> None:
    mail = persistent.Mail(SIZES, 1, CPU)
    assert (mail.next_tag(), mail.next_tag()) == (1, 1 + SIZES.layers)
    mail.u.fill_(7)
    mail._used = 2**32 - SIZES.layers + 1
    assert mail.next_tag() == 1
    assert not mail.u.any(), "mail of the last round could be taken for this one's"
