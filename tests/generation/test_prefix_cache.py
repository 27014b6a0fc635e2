"""A prompt whose beginning was read before gives the same bits, in less reading."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.generation import PrefixCache, generate, prefix_cache, stream
from mambabyte.generation.api import SHORT
from mambabyte.generation.prefix_cache import pieces, read_pieces
from tests.generation.conftest import tiny_model

TEXT = np.random.default_rng(0).bytes(12_000)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(prefix_cache, "FIRST_PIECE", 16)
    monkeypatch.setattr(prefix_cache, "PREFILL_CHUNK", 64)


def equal(a, b):
    pairs = zip(a.named_tensors(), b.named_tensors(), strict=True)
    return all(torch.equal(x, y) for (_, x), (_, y) in pairs)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=150)), min_size=1, max_size=6), st.integers(0, 60_000)
)
def test_what_is_found_has_the_bits_of_what_is_read(model, prompts, limit):
    """Prompts of a shared beginning and an end of their own, in a cache of any size, each twice."""
    cache = PrefixCache(model, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_cache, "FIRST_PIECE", 16)
        patch.setattr(prefix_cache, "PREFILL_CHUNK", 64)
        for shared, own in prompts * 2:
            prompt = TEXT[:shared] + own or b"\n"
            assert equal(cache.context(model, prompt), read_pieces(model, prompt, None))
            assert cache.nbytes <= limit
            assert cache.nbytes == sum(entry.nbytes(key) for key, entry in cache._entries.items())


def test_half_of_a_shared_beginning_and_all_of_a_repeated_prompt_are_found(model):
    cache = PrefixCache(model)
    cache.context(model, TEXT[:500] + b"one")
    assert (cache.found, cache.read) == (0, 503)
    cache.context(model, TEXT[:500] + b"two, and more of it")
    assert cache.found == 448
    assert cache.read == 503 + 52 + 19
    before = cache.read
    cache.context(model, TEXT[:500] + b"one")
    assert cache.read == before


def test_the_least_recently_used_go_first_and_beginnings_last(model):
    size = read_pieces(model, b"x", None).nbytes
    cache = PrefixCache(model, 6 * size + 2000)
    cache.context(model, TEXT[:64])
    for i in range(20):
        cache.context(model, TEXT[:32] + bytes([i]) * 20)
    cache.read = 0
    cache.context(model, TEXT[:32] + bytes([19]) * 20)
    assert cache.read == 0, "the latest is there"
    cache.context(model, TEXT[:64])
    assert cache.read == 32, "of the oldest the beginning that the others share"
    assert PrefixCache(model, 0).context(model, TEXT[:100]).batch == 1


@pytest.mark.parametrize("drafter", [None, "lookup"])
def test_the_output_is_the_same_with_and_without_a_cache(model, drafter):
    prompts = [TEXT[:300] + end for end in (b"", b"a", b"b" * 90, b"a")] + [b"short", b""]
    options = {"max_bytes": 20, "seed": 3, "drafter": drafter}
    plain = generate(model, prompts, **options)
    cache = PrefixCache(model)
    for _ in range(2):
        assert generate(model, prompts, prefix_cache=cache, **options) == plain
    assert cache.found > cache.read > 0
    assert b"".join(stream(model, prompts[2], prefix_cache=cache, **options)) == plain[2]


def test_a_prompt_after_a_state_is_read_from_there(model):
    cache, state = PrefixCache(model), read_pieces(model, b"before", None)
    options = {"max_bytes": 10, "seed": 1, "state": state}
    assert generate(model, TEXT[:100], prefix_cache=cache, **options) == generate(model, TEXT[:100], **options)
    assert cache.nbytes == 0


def test_a_cache_of_another_model_is_refused(model):
    with pytest.raises(ValueError, match="another model"):
        generate(model, TEXT[: SHORT + 1], prefix_cache=PrefixCache(tiny_model(seed=1)), max_bytes=1)


def test_pieces_are_the_prompt_and_end_where_they_should(monkeypatch):
    monkeypatch.undo()
    for length in (0, 1, 511, 512, 513, 1024, 5000, 12_000):
        cut = list(pieces(TEXT[:length]))
        assert b"".join(cut) == TEXT[:length]
        assert all(cut)
    ends = np.cumsum([len(piece) for piece in pieces(TEXT)]).tolist()
    assert ends == [512, 1024, 2048, 4096, 8192, 12_000]
