"""Shows a running search: a live table on a terminal, a line per finished trial elsewhere."""

import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import get_args

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from search.studies import Ending, TypeStudy, ending_of

logger = logging.getLogger(__name__)

_ENDINGS = get_args(Ending)


def time_left(started: float, done: int, left: int) -> str:
    """In words, at the pace since `started`, of `time.monotonic`; "?" where nothing is done yet."""
    if done <= 0:  # less than nothing where trials that had paused go on
        return "?"
    seconds = (time.monotonic() - started) / done * left
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class Progress:
    """An observer of trials, and the context in which they are shown.

    Args:
        studies: One per machine type.
        n_trials: Asked per machine type.
        n_epochs: Most epochs of a trial.
        spending: What has been spent of what, in words.
    """

    def __init__(
        self,
        studies: Mapping[str, TypeStudy],
        n_trials: int,
        n_epochs: int,
        spending: Callable[[], str],
    ) -> None:
        self._studies, self._n_trials, self._n_epochs = studies, n_trials, n_epochs
        self._spending = spending
        self._started = time.monotonic()
        self._done_before = self._n_done()
        self._console = Console(stderr=True)
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=2)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """Say how a trial ended, unless the live table shows it."""
        if trial.state == TrialState.RUNNING or self._console.is_terminal:
            return
        study = self._studies[machine_type]
        value = _last_value(trial)
        logger.info(
            "%s trial %d %s%s after %d of %d epochs (%d of %d trials, %s left)%s",
            machine_type,
            trial.number,
            ending_of(trial),
            "" if value is None else f", {study.objective} {value:.3f}",
            max(trial.intermediate_values, default=0),
            self._n_epochs,
            study.n_finished(),
            self._n_trials,
            self._eta(),
            f": {trial.user_attrs['reason']}" if ending_of(trial) == "failed" else "",
        )

    def _n_done(self) -> int:
        """Trials that have ended, or wait and may have."""
        return sum(s.n_finished() + s.count("paused") for s in self._studies.values())

    def _eta(self) -> str:
        """Time left at the pace so far."""
        left = sum(study.n_left(self._n_trials) for study in self._studies.values())
        return time_left(self._started, self._n_done() - self._done_before, left)

    def _table(self) -> Table:
        elapsed = int(time.monotonic() - self._started)
        title = (
            f"{elapsed // 60}:{elapsed % 60:02d} elapsed, {self._eta()} left, {self._spending()}"
        )
        table = Table(title=title, title_justify="left")
        for column in ("machine", "trials", *_ENDINGS, "best"):
            table.add_column(column, justify="left" if column == "machine" else "right")
        table.add_column("running trials: epoch, objective so far")
        for machine_type, study in self._studies.items():
            trials = study.trials()
            best = study.best()
            running = [t for t in trials if ending_of(t) == "running"]
            counts = [str(study.count(ending)) for ending in _ENDINGS]
            table.add_row(
                escape(machine_type),
                f"{study.n_finished()}/{self._n_trials}",
                *counts,
                "" if best is None else f"{study.objective} {best.value:.3f} (#{best.number})",
                "  ".join(self._running(trial) for trial in running),
            )
        return table

    def _running(self, trial: FrozenTrial) -> str:
        value = _last_value(trial)
        epoch = max(trial.intermediate_values, default=0)
        shown = "" if value is None else f" {value:.3f}"
        return f"#{trial.number} {epoch}/{self._n_epochs}{shown}"


def _last_value(trial: FrozenTrial) -> float | None:
    values = trial.intermediate_values
    return values[max(values)] if values else None
