from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from mambabyte.data.mixture import Mixture

WEIGHTS = st.lists(st.fractions(Fraction(1, 100), 100, max_denominator=100), min_size=1, max_size=6)


@given(weights=WEIGHTS)
def test_each_share_counts_its_draws_from_zero_without_gaps(weights):
    deal = Mixture(weights)
    counts = [0] * len(weights)
    for draw in range(300):
        share, number = deal(draw)
        assert number == counts[share]
        counts[share] += 1


@given(weights=WEIGHTS, draws=st.integers(0, 10**15))
def test_counts_follow_the_weights_however_long_the_run(weights, draws):
    deal = Mixture(weights)
    latest: dict[int, int] = {}
    draw = draws
    while len(latest) < len(weights):  # the number a share's next draw will have is how often it was drawn before
        share, number = deal(draw)
        latest.setdefault(share, number)
        draw += 1
    for share, weight in enumerate(weights):
        assert abs(latest[share] - draws * weight / sum(weights)) < share + 1


def test_three_to_one_is_dealt_evenly():
    deal = Mixture([Fraction(3), Fraction(1)])
    assert [deal(draw)[0] for draw in range(8)] == [1, 0, 0, 0, 1, 0, 0, 0]
