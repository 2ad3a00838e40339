"""Ctrl-C during a Tune run: once ends it in good order, twice stops at once."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ray import tune

logger = logging.getLogger(__name__)


class Interrupt(tune.Stopper):  # type: ignore[misc]
    """Ends a Tune run after the first SIGINT; what Tune does by itself nobody can ask about.

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
        """Take the first SIGINT as a wish; the second raises KeyboardInterrupt, as ever."""
        before = signal.signal(signal.SIGINT, self._set)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("interrupted: stopping the trials; press Ctrl-C again to stop at once")
