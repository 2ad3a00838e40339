"""Ctrl-C or SIGTERM: once is a wish, twice is an order."""

import logging
import os
import signal
from signal import SIGINT, SIGTERM

import pytest

from search.interrupt import Interrupt


def send(*signals: signal.Signals) -> None:
    for number in signals:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "said"), [(SIGINT, "interrupted"), (SIGTERM, "asked to terminate")]
)
def test_the_first_signal_asks_tune_to_stop_all(
    number: signal.Signals, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    before = signal.getsignal(SIGINT), signal.getsignal(SIGTERM)
    interrupt = Interrupt()
    with interrupt.listening():
        assert not interrupt.stop_all()
        send(number)
        assert interrupt.stop_all()
        assert not interrupt("a trial", {})
    assert (signal.getsignal(SIGINT), signal.getsignal(SIGTERM)) == before
    assert caplog.messages == [f"{said}: stopping the trials; press Ctrl-C again to stop at once"]


@pytest.mark.parametrize("second", [SIGINT, SIGTERM])
def test_the_second_one_stops_at_once(second: signal.Signals) -> None:
    before = signal.getsignal(SIGINT), signal.getsignal(SIGTERM)
    with pytest.raises(KeyboardInterrupt), Interrupt().listening():
        send(SIGTERM, second)
    assert (signal.getsignal(SIGINT), signal.getsignal(SIGTERM)) == before
