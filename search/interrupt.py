"""Ctrl-C or SIGTERM during a Tune run: once ends it in good order, twice stops at once.

A machine that is taken back, as spot machines are, sends SIGTERM and leaves a minute or two.
"""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ray import tune

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


class Interrupt(tune.Stopper):  # type: ignore[misc]
    """Ends a Tune run after the first signal; what Tune does by itself nobody can ask about.

    Trials that run are cut off like those of an exhausted time budget.
    """

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        """Stops no single trial."""
        return False

    def stop_all(self) -> bool:
        """See Stopper."""
        return self.is_set

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first SIGINT or SIGTERM as a wish; the second raises KeyboardInterrupt."""
        before = {number: signal.signal(number, self._set) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        for each in _SIGNALS:
            signal.signal(each, signal.default_int_handler)
        logger.warning(
            "%s: stopping the trials; press Ctrl-C again to stop at once",
            "interrupted" if number == signal.SIGINT else "asked to terminate",
        )
