"""Ctrl-C: once is a wish, twice is an order."""

import logging
import os
import signal

import pytest

from search.interrupt import Interrupt


def press_ctrl_c(times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_first_ctrl_c_asks_tune_to_stop_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before = signal.getsignal(signal.SIGINT)
    interrupt = Interrupt()
    with interrupt.listening():
        assert not interrupt.stop_all()
        press_ctrl_c()
        assert interrupt.stop_all()
        assert not interrupt("a trial", {})
    assert signal.getsignal(signal.SIGINT) is before
    assert caplog.messages == [
        "interrupted: stopping the trials; press Ctrl-C again to stop at once"
    ]


def test_the_second_one_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt().listening():
        press_ctrl_c(times=2)
    assert signal.getsignal(signal.SIGINT) is before
