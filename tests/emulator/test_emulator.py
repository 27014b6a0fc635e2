"""The emulator runs right kernels rightly and says what wrong ones do wrong."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import emulator
from tests.emulator import EmulationError
from tests.emulator.rewriting import rewrite

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))

KERNELS = Path(__file__).with_name("kernels.cu")
SEEDS = (0, 1, 2, 3)


def kernel(name: str, io: int = 0) -> emulator.Emulated:
    return emulator.get(("device.cuh", "decode/machine.cuh", str(KERNELS)), name, IO=io)


def line_of(text: str) -> int:
    """Where the kernels' file says so."""
    (found,) = [i for i, line in enumerate(KERNELS.read_text().splitlines(), 1) if text in line]
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_every_thread_of_every_block_runs_once(seed: int) -> None:
    to = torch.zeros(3 * 2 * 2 * 40, dtype=torch.int64)
    kernel("number_threads")((3, 2, 2), 40, to, seed=seed)
    assert torch.equal(to.view(12, 40), torch.arange(12)[:, None] * 1000 + torch.arange(40))


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_of_a_block_share_memory_and_meet(seed: int) -> None:
    x, y = torch.randn(3, 64), torch.zeros(3, 64)
    kernel("reverse")((3,), 64, x, y, 1, seed=seed, races=True)
    assert torch.equal(y, x.flip(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_shows_as_nan(seed: int) -> None:
    y = torch.zeros(64)
    kernel("reverse")((1,), 64, torch.randn(64), y, 0, seed=seed)
    assert y.isnan().any()


def test_a_missing_barrier_is_a_race_of_two_lines() -> None:
    with pytest.raises(EmulationError, match=r"race: byte 128 of a __shared__ variable") as raised:
        kernel("reverse")((1,), 64, torch.randn(64), torch.zeros(64), 0, races=True)
    lines = [int(line) for line in re.findall(r"kernels\.cu:(\d+)", str(raised.value))]
    assert lines == [line_of("row[threadIdx.x] = x"), line_of("= row[63 - threadIdx.x]")]


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles_and_votes(seed: int) -> None:
    to = torch.zeros(5, 32, dtype=torch.int32)
    kernel("shuffles")((1,), 32, to, seed=seed)
    lane = torch.arange(32)
    down = torch.where(lane % 8 + 3 < 8, lane + 3, lane)
    expected = [lane ^ 5, down, (lane - 1).clamp(min=0), lane // 8 * 8 + 2, torch.full((32,), 11)]
    assert torch.equal(to.long(), torch.stack(expected))


@pytest.mark.parametrize(("io", "dtype"), [(0, torch.bfloat16), (1, torch.float16)])
def test_matrix_fragments(io: int, dtype: torch.dtype) -> None:
    a, b, d = torch.randn(16, 16).to(dtype), torch.randn(8, 16).to(dtype), torch.zeros(16, 8)
    kernel("product", io)((1,), 32, a, b, d)
    torch.testing.assert_close(d, a.float() @ b.float().T, rtol=1e-5, atol=1e-5)
    alone = torch.zeros(16, 8)
    kernel("product", io)((1,), 32, torch.zeros_like(a).index_copy_(0, torch.tensor([11]), a[3:4]), b, alone)
    assert torch.equal(alone[11], d[3])


@pytest.mark.parametrize(("io", "dtype"), [(0, torch.bfloat16), (1, torch.float16)])
def test_conversions_are_those_of_torch(io: int, dtype: torch.dtype) -> None:
    edges = [0.0, -0.0, 1e-8, 6e-8, 65519.0, 65520.0, 3.39e38, float("inf"), -float("inf"), 1.00390625, 1.01171875]
    x = torch.cat([torch.tensor(edges), torch.randn(117) * 10])
    narrow, wide, powers = torch.zeros(128, dtype=dtype), torch.zeros(128), torch.zeros(128)
    kernel("round_trip", io)((2,), 64, x, narrow, wide, powers)
    assert torch.equal(narrow, x.to(dtype))
    assert torch.equal(wide, narrow.float())
    torch.testing.assert_close(powers, x.exp2(), rtol=1e-6, atol=1e-37)


def fetch(
    waits_for_row: int = 1, waits_for_room: int = 1, announced: int = 256, **options: int
) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(3, 64), torch.zeros(3, 64)
    kernel("fetch")((1,), 64, x, y, waits_for_row, waits_for_room, announced, shared=384, **options)
    return x, y


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_copies(seed: int) -> None:
    x, y = fetch(seed=seed, races=True)
    assert torch.equal(x, y)


def test_a_copy_arrives_late() -> None:
    _, y = fetch(waits_for_row=0)
    assert y.isnan().all()
    with pytest.raises(EmulationError, match=r"race: byte .* read by .* and written by an asynchronous copy"):
        fetch(waits_for_row=0, races=True)


def test_a_copy_must_wait_until_the_last_one_is_read() -> None:
    with pytest.raises(EmulationError, match=r"race: .* written .* thread 0 .*and read by .* nothing orders the two"):
        fetch(waits_for_room=0, races=True)


def test_a_copy_larger_than_announced_deadlocks() -> None:
    with pytest.raises(EmulationError, match=r"threads 0-63: barrier_wait for parity 0 \(\S+, in \S*kernels.cu:\d+"):
        fetch(announced=240)


def gather(waits_for_readers: int, **options: int) -> Tensor:
    mail, sums = torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 4, 32)
    kernel("gather")((5,), 32, mail, sums, 4, waits_for_readers, **options)
    return sums


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_of_a_thread(seed: int) -> None:
    x, y = torch.randn(2, 64), torch.zeros(2, 64)
    kernel("copy_by_thread")((1,), 64, x, y, 40, 1, 1, shared=512, seed=seed, races=True)
    assert torch.equal(y, (x * (torch.arange(64) < 40)).flip(1))


def test_a_group_that_is_not_awaited_has_not_arrived() -> None:
    x, y = torch.randn(2, 64), torch.zeros(2, 64)
    kernel("copy_by_thread")((1,), 64, x, y, 64, 0, 1, shared=512)
    assert torch.equal(y[0], x[0].flip(0))
    assert y[1].isnan().all()


@pytest.mark.parametrize("seed", SEEDS[1:])
def test_a_group_that_is_not_awaited_may_have_arrived(seed: int) -> None:
    """Copies to a place that is still read, as of a ring with too few, are seen."""
    x, y = torch.randn(2, 64), torch.zeros(2, 64)
    kernel("copy_by_thread")((1,), 64, x, y, 64, 0, 1, shared=512, seed=seed)
    assert 0 < y[1].isnan().sum() < 64


def test_what_a_thread_awaits_has_arrived_for_no_other() -> None:
    with pytest.raises(EmulationError, match=r"race: byte 128 of the dynamic shared memory") as raised:
        kernel("copy_by_thread")((1,), 64, torch.randn(2, 64), torch.zeros(2, 64), 64, 1, 0, shared=512, races=True)
    assert f"kernels.cu:{line_of('[63 - i];  // read')}" in str(raised.value)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_send_each_other_mail(seed: int) -> None:
    sums = gather(1, seed=seed, races=True)
    assert torch.equal(sums, (torch.arange(1, 5) * 50.0 + 10)[:, None].expand_as(sums))


def test_mail_that_is_replaced_before_it_is_read_deadlocks() -> None:
    with pytest.raises(
        EmulationError, match=r"looks for what does not arrive \(\S+, in \S*kernels\.cu:\d+, in \S*kernels\.cu:"
    ):
        gather(0)


@pytest.mark.parametrize("seed", SEEDS)
def test_reading_again_is_not_waiting(seed: int) -> None:
    to = torch.zeros(1, dtype=torch.int64)
    kernel("read_again")((1,), 1, torch.tensor([3, 0]), to, 80, seed=seed)
    assert to.item() == 240


def announce(also_by_mail: int, **options: int) -> int:
    mail, number, to = (
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
    )
    kernel("announce")((2,), 1, mail, number, to, also_by_mail, **options)
    return int(to[0])


def test_mail_arrives_in_any_order_and_orders_nothing_else() -> None:
    assert {announce(1, seed=seed) for seed in range(1, 20)} == {0, 5}
    with pytest.raises(EmulationError, match=r"race: byte 0 of tensor 1 (written|read) .* nothing orders the two"):
        announce(0, races=True)


def test_a_seed_is_a_schedule() -> None:
    assert [announce(1, seed=seed) for seed in range(1, 20)] == [announce(1, seed=seed) for seed in range(1, 20)]


def test_atomics_do_not_race() -> None:
    total = torch.zeros(1, dtype=torch.int32)
    kernel("count")((4,), 96, total, races=True)
    assert total.item() == 4 * 96


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            0,
            (
                r"threads 0-4 6-63: __syncthreads \(\S+:{sync}\)",
                r"threads 5: looks for what does not arrive \(.*, in \S+:{mail}\)",
            ),
        ),
        (1, (r"threads 0-31: block_sync of barrier 2 for 96 threads", r"threads 32-63: __syncthreads")),
        (2, (r"threads 0-7: __syncwarp", r"threads 8-63: __syncthreads")),
    ],
)
def test_a_deadlock_names_who_waits_where(how: int, said: tuple[str, ...]) -> None:
    with pytest.raises(EmulationError, match="deadlock") as raised:
        kernel("part_ways")((2,), 64, how, torch.zeros(2, dtype=torch.int64))
    lines = {"sync": line_of("__syncthreads();  // last"), "mail": line_of("how == 0")}
    for block in (0, 1):
        for words in said:
            assert re.search(f"block {block}, {words.format(**lines)}", str(raised.value)), raised.value


def test_a_thread_that_never_waits_runs_out_of_time() -> None:
    with pytest.raises(EmulationError, match=r"out of time: block 0, thread 0 ran here \(\S*kernels.cu:\d+"):
        kernel("spin")((1,), 32, torch.ones(1, dtype=torch.int32), seconds=0.05)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (0, "thread 0: an index outside its array"),
        (1, "an address off its alignment"),
        (2, "Segmentation fault at address .* byte 16384 of 160 of its dynamic shared memory"),
        (3, "block 0 wrote outside its dynamic shared memory, at byte 160 of 160"),
        (4, "barrier_arrive on a barrier that was not initialised"),
        (5, "barrier_arrive on a barrier that was overwritten"),
        (6, "block 0 ended while a copy into its shared memory was on its way"),
        (7, "bulk_copy off the alignment of 16 bytes"),
        (8, "bulk_copy to bytes 144 to 176 of 160 of shared memory"),
        (10, "a shuffle by lane 0, which is not in its mask 00000002"),
    ],
)
def test_what_is_wrong_is_said(what: int, said: str) -> None:
    with pytest.raises(EmulationError, match=said):
        kernel("wrong")((1,), 32, what, torch.ones(64), shared=160)


def test_accesses_outside_of_tensors() -> None:
    with pytest.raises(EmulationError, match=r"4 bytes written outside .* nearest tensor 0: byte 256 of 256"):
        kernel("wrong")((1,), 32, 9, torch.ones(64), shared=160, races=True)


def test_arguments_are_those_of_the_kernel() -> None:
    with pytest.raises(EmulationError, match="another number of arguments"):
        kernel("count")((1,), 32, torch.zeros(1), 3)
    with pytest.raises(ValueError, match=r"have no .* nothing"):
        kernel("nothing")((1,), 32)
    with pytest.raises(ValueError, match=r"g\+\+ could not compile"):
        emulator.get((str(emulator.HERE / "scheduler.h"), str(KERNELS)), "count")((1,), 32)


def test_rewriting_keeps_lines_and_operands() -> None:
    source = """
extern __shared__ float4 memory[];
extern "C" __global__ void __launch_bounds__(LANES* (ROWS + 1),
                                             2) both(float* x) {
    __shared__ Tile tiles[ROWS][2];
    asm volatile("mma.sync {%0, %1}, "
                 "{%2};"
                 : "=f"(x[0]), "=f"(x[f(1, 2)])
                 : "r"(a ? b : c) : "memory");
    asm("prefetch.global.L2 [%0];" ::"l"(std::max(x, y)));
}"""
    made = rewrite(source)
    assert "#define memory ((float4*)emulated::here->dynamic_shared)" in made
    assert "using shared_tiles = Tile[ROWS][2];" in made
    assert "emulated::ptx::mma_sync(x[0], x[f(1, 2)], a ? b : c)" in made
    assert "emulated::ptx::prefetch_global_L2(std::max(x, y));" in made
    assert "EMULATED_ENTRY(both)" in made
    lines = made.splitlines()
    assert lines.index("    emulated::ptx::prefetch_global_L2(std::max(x, y));") - lines.index("") == 9
    with pytest.raises(ValueError, match="one instruction"):
        rewrite('asm("membar.gl; bar.sync 0;");')
