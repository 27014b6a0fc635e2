"""SIGTERM and Ctrl-C ask a run to stop; it stops where its state is whole, saves and ends well."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(BaseException):
    """Raised by a signal inside `StopRequest.attempt`; not an Exception, so that no evaluator swallows it."""


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

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What `work` returns, or None if a signal, even an earlier one, asks to stop: then it ends at once.

        For work that may be thrown away, such as an evaluation.
        """
        if self.requested:
            return None
        try:
            self._raise = True
            result = work()
            self._raise = False
            return result
        except Stopped:
            return None
        finally:
            self._raise = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self._raise:
            self._raise = False  # raised once, so that nothing escapes from `attempt`
            raise Stopped
