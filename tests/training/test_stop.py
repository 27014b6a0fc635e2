import os
import signal
import threading

import pytest

from mambabyte.training.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_second_interrupt_interrupts() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_request_ends_interruptible_work_at_once() -> None:
    reached: list[str] = []

    def work() -> list[str]:
        reached.append("before")
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("after")
        return reached

    with StopRequest() as stop:
        assert stop.attempt(work) is None
        assert stop.attempt(work) is None
    assert reached == ["before"]


def test_undisturbed_work_returns_what_it_made() -> None:
    with StopRequest() as stop:
        assert stop.attempt(lambda: 42) == 42
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested, "a signal after the work raises nothing"


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
