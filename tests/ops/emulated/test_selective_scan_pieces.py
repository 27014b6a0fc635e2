"""The CUDA scan's backward where its partial sums of dB and dC do not fit: piece by piece, with the same gradients."""

import pytest
import torch

from mambabyte.ops import selective_scan
from mambabyte.ops.selective_scan import cuda_plan
from tests.ops.gpu.compare import TOLERANCE, check
from tests.ops.scan_cases import scan_inputs

POSITION = 2 * 8 * 4  # bytes of a position with up to 8 states and one block of channels


@pytest.mark.parametrize(("rows", "initial"), [(70, True), (32, False)], ids=["a batch row", "a stretch"])
def test_gradients_of_pieces(rows: int, initial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_plan, "SCRATCH_BYTES", rows * POSITION)
    check(selective_scan, scan_inputs(2, 70, 8, 5, initial=initial), TOLERANCE[torch.float32])


@pytest.mark.parametrize(("batch", "length", "width"), [(8, 8192, 2048), (1, 65536, 2048), (4, 8192, 3584)])
def test_what_is_trained_is_one_piece(batch: int, length: int, width: int) -> None:
    (piece,) = cuda_plan.plan(batch, length, width, 16).pieces()
    assert (range(batch)[piece[0]], range(length)[piece[1]]) == (range(batch), range(length))


@pytest.mark.parametrize(("batch", "length", "states"), [(1, 2**20, 64), (5, 65536, 32), (3, 1000, 64), (40, 7, 1)])
def test_pieces_are_bounded_and_cover_everything(batch: int, length: int, states: int) -> None:
    laid = cuda_plan.plan(batch, length, 3584, states)
    seen = []
    for rows, time in laid.pieces():
        whole = range(batch)[rows], range(length)[time]
        seen += [(row, t) for row in whole[0] for t in (whole[1][0], whole[1][-1])]
        assert whole[1].start % cuda_plan.CHUNK == 0
        assert len(whole[0]) == 1 or len(whole[1]) == length
        scratch = laid.blocks * len(whole[0]) * len(whole[1]) * 2 * laid.padded_states * 4
        assert scratch <= cuda_plan.SCRATCH_BYTES
    for row in range(batch):
        edges = [t for r, t in seen if r == row]
        assert max(edges) == length - 1
        assert min(edges) == 0
        starts, stops = edges[::2], edges[1::2]
        assert starts[:-1] == [stop + 1 for stop in stops[1:]], "the last first, without a gap"
