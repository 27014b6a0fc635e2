import gc
import itertools
import threading

import pytest
import torch

from mambabyte.data import Corpus, Windows, prefetch


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mambabyte-prefetch")]


@pytest.fixture
def windows(write):
    return Windows(Corpus.open([write([bytes(range(100)), bytes(200)])]), context=7, batch=4, seed=0)


def test_batches_come_in_step_order_from_any_start(windows):
    batches = prefetch(windows, 5, slice(1, 3))
    for step, batch in enumerate(itertools.islice(batches, 20), start=5):
        assert torch.equal(batch.inputs, windows.batch(step, slice(1, 3)).inputs)
    batches.close()


def test_closing_or_forgetting_ends_the_thread(windows):
    batches = prefetch(windows)
    next(batches)
    assert len(ours()) == 1
    batches.close()
    batches.close()
    assert not ours()
    with pytest.raises(StopIteration):
        next(batches)
    next(prefetch(windows))
    gc.collect()
    assert not ours()


def test_what_reading_raises_reaches_the_reader(windows, tmp_path):
    batches = prefetch(windows)
    next(batches)
    (tmp_path / "documents/000000").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"documents/000000: (held 100 bytes|ends at byte \d+ and held 100)"):
        list(itertools.islice(batches, 100))
    assert not ours()
