"""Owns the thread that writes to the tracker, so that tracking never slows or fails a trial.

Knows nothing of MLflow. What is not written when the search ends is lost here but not for good:
Optuna's storage has it, and the next opening of the study logs it again.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Protocol

from optuna.trial import FrozenTrial

from search.studies import Ending, TypeStudy, ending_of

logger = logging.getLogger(__name__)

_SHOWN: tuple[Ending, ...] = ("complete", "pruned", "failed")  # by the parent run


class TrackerLike(Protocol):
    """The part of `tracking.Tracker` that is used while trials run."""

    def log_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """Bring the trial's run up to date."""

    def log_parent(
        self, machine_type: str, metrics: Mapping[str, float | None], *, step: int
    ) -> None:
        """Write the parent run's metrics."""


class BackgroundTracker:
    """Writes the newest snapshot of each trial, in the order in which they first came.

    A write that fails is tried again, after growing pauses, until it works or `close` gives up.

    Args:
        tracker: Does the writing; its calls may block and raise.
        retry_s: Pause after the first failure; doubles with each further one.
        retry_most_s: Longest pause.
    """

    def __init__(
        self, tracker: TrackerLike, retry_s: float = 1.0, retry_most_s: float = 30.0
    ) -> None:
        self._tracker = tracker
        self._retry_s = retry_s
        self._retry_most_s = retry_most_s
        self._pending: dict[str, Callable[[], None]] = {}  # insertion order is the queue
        self._changed = threading.Condition()
        self._deadline: float | None = None  # set by close
        self._thread = threading.Thread(target=self._write_all, name="tracking", daemon=True)
        self._thread.start()

    def submit_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """Have `Tracker.log_trial` called; a newer snapshot of the trial replaces a waiting one."""
        job = partial(self._tracker.log_trial, machine_type, trial)
        self._submit(f"{machine_type}/{trial.number}", job)

    def submit_parent(
        self, machine_type: str, metrics: Mapping[str, float | None], step: int = 0
    ) -> None:
        """Have `Tracker.log_parent` called; replaces a waiting one, so pass all metrics."""
        job = partial(self._tracker.log_parent, machine_type, metrics, step=step)
        self._submit(machine_type, job)

    def close(self, timeout_s: float) -> int:
        """Write what waits, for at most `timeout_s` seconds.

        Returns:
            How many trials and parent runs are not up to date in the tracker, 0 if all are.
        """
        with self._changed:
            self._deadline = monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            return len(self._pending)

    def _submit(self, key: str, job: Callable[[], None]) -> None:
        with self._changed:
            if self._deadline is not None:
                raise RuntimeError(f"{key} was submitted after close")
            self._pending[key] = job
            self._changed.notify_all()

    def _write_all(self) -> None:
        pause_s = self._retry_s
        is_down = False
        while (item := self._next()) is not None:
            key, job = item
            try:
                job()
            except Exception as error:  # whatever it is, the search must go on
                if not is_down:
                    logger.warning("tracking fails, will be tried again: %s", error)
                is_down = True
                self._put_back(key, pause_s)
                pause_s = min(2 * pause_s, self._retry_most_s)
            else:
                if is_down:
                    logger.warning("tracking works again")
                is_down = False
                pause_s = self._retry_s
                with self._changed:
                    if self._pending[key] is job:  # else a newer snapshot came meanwhile
                        del self._pending[key]

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        """The oldest job, which stays pending until written; None when closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._deadline is not None)
            is_late = self._deadline is not None and monotonic() >= self._deadline
            return None if is_late else next(iter(self._pending.items()), None)

    def _put_back(self, key: str, pause_s: float) -> None:
        """Queue a failed job last, so that one bad trial does not hold up the others, and pause."""
        with self._changed:
            self._pending[key] = self._pending.pop(key)
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, pause_s)
            else:
                self._changed.wait(min(self._retry_s, self._deadline - monotonic()))


class TrackingObserver:
    """Passes trials on to the tracker, and the counts of their machine type."""

    def __init__(self, background: BackgroundTracker, studies: Mapping[str, TypeStudy]) -> None:
        self._background = background
        # Kept instead of counted anew, for a study may be large and its trials short.
        self._counts: dict[str, Counter[Ending]] = {name: Counter() for name in studies}
        self._best: dict[str, float] = {}
        for machine_type, study in studies.items():
            for trial in study.trials():
                self._count(machine_type, trial)

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """See Observer."""
        self._background.submit_trial(machine_type, trial)
        if trial.state.is_finished():
            self._count(machine_type, trial)
            counts = self._counts[machine_type]
            metrics: dict[str, float | None] = {name: counts[name] for name in _SHOWN}
            metrics["best_objective"] = self._best.get(machine_type)
            self._background.submit_parent(machine_type, metrics, step=counts.total())

    def _count(self, machine_type: str, trial: FrozenTrial) -> None:
        if not trial.state.is_finished():
            return
        ending = ending_of(trial)
        self._counts[machine_type][ending] += 1
        if ending == "complete" and trial.value is not None:
            best = self._best.get(machine_type, trial.value)
            self._best[machine_type] = max(best, trial.value)
