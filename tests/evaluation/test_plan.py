import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabyte.evaluation.plan import Plan

sizes = st.lists(st.integers(0, 70), max_size=5)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    mode = draw(st.sampled_from(["stream", "window", "sliding"]))
    context = draw(st.integers(1, 40))
    stride = draw(st.none() | st.integers(1, context)) if mode == "sliding" else None
    return Plan(mode=mode, context=None if mode == "stream" else context, stride=stride)


@given(plans(), sizes)
def test_every_byte_is_scored_exactly_once_and_in_order(plan: Plan, sizes: list[int]) -> None:
    scored = [(run.document, byte) for run in plan.runs(enumerate(sizes)) for byte in range(run.scored, run.stop)]
    assert scored == [(document, byte) for document, size in enumerate(sizes) for byte in range(size)]


@given(plans(), st.integers(1, 200))
def test_a_run_reads_no_more_than_its_context(plan: Plan, size: int) -> None:
    for run in plan.runs([(0, size)]):
        assert 0 <= run.start <= run.scored < run.stop <= size
        assert plan.mode == "stream" or run.stop - run.start <= plan.window


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_sliding_windows_start_every_stride_and_see_the_rest_of_the_context(
    size: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    runs = list(Plan(mode="sliding", context=context, stride=stride).runs([(0, size)]))
    assert [run.start for run in runs] == [i * stride for i in range(len(runs))]
    assert all(run.scored - run.start == context - stride for run in runs[1:])


@given(st.integers(1, 100), st.integers(0, 50))
def test_a_window_as_large_as_the_document_is_a_stream(size: int, more: int) -> None:
    stream = list(Plan().runs([(0, size)]))
    for mode in ("window", "sliding"):
        assert list(Plan(mode=mode, context=size + more).runs([(0, size)])) == stream


def test_a_stride_of_the_whole_context_is_plain_windows() -> None:
    sliding = Plan(mode="sliding", context=8, stride=8).runs([(0, 30)])
    assert list(sliding) == list(Plan(mode="window", context=8).runs([(0, 30)]))


def test_stride_is_half_the_context_unless_given() -> None:
    assert Plan(mode="sliding").step == 4096
    assert Plan(mode="sliding", context=1).step == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "windows"}, "mode must be one of stream, window, sliding, got 'windows'"),
        ({"mode": "window", "context": 0}, "context must be at least 1 byte, got 0"),
        ({"context": 64}, "context 64 needs the mode window or sliding"),
        ({"mode": "window", "stride": 4}, "stride 4 needs the mode sliding"),
        ({"mode": "sliding", "context": 8, "stride": 9}, "stride must lie between 1 and the context of 8 bytes, got 9"),
        ({"mode": "sliding", "stride": 0}, "stride must lie between 1 and the context of 8192 bytes, got 0"),
    ],
)
def test_what_does_not_fit_is_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Plan(**options)
