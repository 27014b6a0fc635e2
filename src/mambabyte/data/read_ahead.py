"""Batches read ahead by one background thread."""

import itertools
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

from mambabyte.data.windows import Batch, Batches


def prefetch(
    windows: Batches, start_step: int = 0, rows: slice = slice(None), *, depth: int = 2
) -> Generator[Batch, None, None]:
    """The chosen rows of steps `start_step`, `start_step + 1`, ... without end, `depth` of them read ahead.

    `close()` (or `contextlib.closing`) ends the thread; so does forgetting the iterator. What reading raises is raised
    by the `next` whose batch it is.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="mambabyte-prefetch") as thread:
        steps = itertools.count(start_step)
        ahead = deque(thread.submit(windows.batch, next(steps), rows) for _ in range(depth))
        try:
            while True:
                batch = ahead.popleft().result()
                ahead.append(thread.submit(windows.batch, next(steps), rows))
                yield batch
        finally:
            thread.shutdown(cancel_futures=True)
