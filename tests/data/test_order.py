import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.data import order
from mambabyte.data.order import FEISTEL, GRAIN, choose_order, pass_key

KEYS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("permutation", [GRAIN, FEISTEL], ids=lambda each: each.name)
@settings(max_examples=60)
@given(size=st.integers(1, 300) | st.integers(2040, 2060), key=KEYS)
def test_every_order_is_a_permutation(permutation, size, key):
    assert sorted(permutation(index, size, key) for index in range(size)) == list(range(size))


@pytest.mark.parametrize(("permutation", "largest"), [(GRAIN, 2**32), (GRAIN, 2**62), (FEISTEL, 2**62)])
@given(data=st.data())
def test_draws_from_huge_sizes_stay_inside_and_never_meet(permutation, largest, data):
    size = data.draw(st.integers(2_000_000_000, largest))
    indices = data.draw(st.sets(st.integers(0, size - 1), min_size=50, max_size=50))
    key = data.draw(KEYS)
    images = {permutation(index, size, key) for index in indices}
    assert len(images) == len(indices)
    assert min(images) >= 0
    assert max(images) < size


@pytest.mark.parametrize("permutation", [GRAIN, FEISTEL], ids=lambda each: each.name)
def test_first_draws_spread_over_the_whole_range(permutation):
    # 4000 draws into 16 equal bins: 250 expected, standard deviation 15; a pattern would leave bins far outside.
    size = 2_000_000_000
    bins = [0] * 16
    for index in range(4000):
        bins[permutation(index, size, pass_key(1, 0, 0)) * 16 // size] += 1
    assert min(bins) > 160
    assert max(bins) < 340


@pytest.mark.parametrize("permutation", [GRAIN, FEISTEL], ids=lambda each: each.name)
def test_every_pass_and_seed_has_its_own_order(permutation):
    keys = [pass_key(seed, share, lap) for seed in (0, 1, -5, 2**80) for share in (0, 1) for lap in (0, 1, 2)]
    orders = {tuple(permutation(index, 50, key) for index in range(50)) for key in keys}
    assert len(orders) == len(keys)


def test_grain_is_chosen_where_it_is_installed():
    assert choose_order() is GRAIN


def test_without_grain_the_choice_is_said_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "grain.experimental", None)  # what makes Python say that it cannot be imported
    order._say_once.cache_clear()
    order._grain_index_shuffle.cache_clear()
    assert choose_order() is FEISTEL
    assert choose_order() is FEISTEL
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "windows are shuffled by the built-in Feistel permutation"
    ]


@pytest.mark.parametrize("permutation", [GRAIN, FEISTEL], ids=lambda each: each.name)
@pytest.mark.parametrize("size", [2, 3, 7, 20, 2500])
def test_every_place_is_as_likely_whatever_the_size(permutation, size):
    # The first draw of 3000 passes, in at most ten bins: the chi-squared statistic of a fair order exceeds 35 in one
    # of ten thousand such tests; the keys are fixed, so this one either always passes or never.
    bins = [0] * min(size, 10)
    for lap in range(3000):
        bins[permutation(0, size, pass_key(5, 0, lap)) * len(bins) // size] += 1
    expected = [3000 * sum(i * len(bins) // size == b for i in range(size)) / size for b in range(len(bins))]
    assert sum((found - mean) ** 2 / mean for found, mean in zip(bins, expected, strict=True)) < 35
