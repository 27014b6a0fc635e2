"""SIGTERM and Ctrl-C ask a run to stop; it stops where its state is whole, saves and ends well."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """Raised by a signal inside `interruptible`; not an Exception, so that no evaluator swallows it."""


class StopRequest:
    """Context manager: while inside, SIGTERM and SIGINT set `requested`; a second Ctrl-C interrupts as usual.

    Outside the main thread Python allows no signal handlers; there nothing is installed and nothing is requested.
    """

    def __init__(self) -> None:
        self.requested = False
        self._raise = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A signal inside ends the block at once, for work that may be thrown away (an evaluation, a sample)."""
        try:
            self._raise = True
            if self.requested:
                raise Stopped
            yield
        except Stopped:
            pass
        finally:
            self._raise = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self._raise:
            raise Stopped
