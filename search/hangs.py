"""Ends workers that hang: Tune and Ray by themselves wait for a silent trial for ever.

The driver watches the trials, since a process that hangs may not even be able to end itself; the
trainings of the confirmation, which report nothing on their way, carry their own alarm.
"""

import faulthandler
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import ray
from ray.tune.experiment import Trial

from search.failures import longest_silence_s

_MOST_AT_ONCE_S = 5.0


def _kill(trial: Trial) -> None:
    """End a trial's worker; Tune then sees it die as any other."""
    ray.kill(trial.temporary_state.ray_actor)


class HangWatch:
    """Ends the workers of trials that run and have been silent for too long.

    A driver that was suspended, or busy with a suggestion, has heard nothing either: of the time
    between two looks at most a few seconds count.

    Args:
        stated_minutes: `study.hang_minutes`.
        kill: Ends a trial's worker.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        stated_minutes: float | None,
        kill: Callable[[Trial], None] = _kill,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stated, self._kill, self._clock = stated_minutes, kill, clock
        self._looked = clock()
        self._silences: dict[str, float] = {}
        self._longest_epoch_s = 0.0
        self._reasons: dict[str, str] = {}

    def heard(self, trial: Trial, epoch_s: float) -> None:
        """A trial reported an epoch that took it so long."""
        self._silences[trial.trial_id] = 0.0
        self._longest_epoch_s = max(self._longest_epoch_s, epoch_s)

    def look(self, trials: Collection[Trial]) -> None:
        """Count on, and end whoever has been silent for too long.

        Args:
            trials: All that have not ended; those that wait for a worker are not meant.
        """
        now = self._clock()
        passed, self._looked = min(now - self._looked, _MOST_AT_ONCE_S), now
        limit = longest_silence_s(self._stated, self._longest_epoch_s)
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        self._silences = {t.trial_id: self._silences.get(t.trial_id, 0.0) + passed for t in running}
        for trial in running:
            if self._silences[trial.trial_id] > limit:
                self._silences[trial.trial_id] = 0.0
                self._reasons[trial.trial_id] = f"hung: no report for {limit:g} s"
                self._kill(trial)

    def reason(self, trial: Trial) -> str | None:
        """Why this watch ended a trial's worker, once; None if it did not."""
        return self._reasons.pop(trial.trial_id, None)


@contextmanager
def alarm(limit_s: float) -> Iterator[None]:
    """End this process, its threads' places written to stderr, if the body takes longer.

    A timer in C does it, which needs no turn of the interpreter.
    """
    if limit_s < math.inf:
        faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
