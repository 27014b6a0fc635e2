"""What the CUDA wrappers ask of tensors before a launch."""

import torch

from mambabyte.ops import nvrtc


def test_rows_too_far_apart_for_offsets_of_32_bits_are_copied() -> None:
    for stride, kept in ((nvrtc.MAX_ROW_STRIDE - 1, True), (nvrtc.MAX_ROW_STRIDE, False)):
        rows = torch.zeros(2, stride, dtype=torch.uint8)[:, :3]
        assert (nvrtc.neighbouring(rows) is rows) == kept
        assert torch.equal(nvrtc.neighbouring(rows), rows)


def test_elements_that_are_no_neighbours_are_copied() -> None:
    assert nvrtc.neighbouring(torch.zeros(3, 4).t()).is_contiguous()


def test_quads_are_whole_where_shape_strides_and_address_are() -> None:
    base = torch.zeros(4, 16)
    assert nvrtc.whole_quads(base, None, base[:, 4:12])
    assert not nvrtc.whole_quads(base, base[:, 2:6])
    assert not nvrtc.whole_quads(base[:, :6])
    assert not nvrtc.whole_quads(torch.zeros(4, 17)[:, :4])


def test_floats_lie_on_16_bytes() -> None:
    askew = torch.randn(9)[1:]
    assert nvrtc.floats(askew).data_ptr() % 16 == 0
    assert torch.equal(nvrtc.floats(askew), askew)
    whole = torch.randn(8)
    assert nvrtc.floats(whole) is whole
