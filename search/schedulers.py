"""Ray schedulers by name, and the one that serves several machine types in a single Tune run."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from search.config import SchedulerConfig
from search.failures import reason_of_loss

_FACTORIES: dict[str, Callable[[SchedulerConfig, str, int], TrialScheduler]] = {
    "none": lambda config, objective, epochs: FIFOScheduler(),
    "asha": lambda config, objective, epochs: AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=objective,
        mode="max",
        max_t=epochs,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
    ),
}


def build_scheduler(config: SchedulerConfig, objective: str, epochs: int) -> TrialScheduler:
    """The scheduler that `config` names, judging by `objective` after each epoch."""
    return _FACTORIES[config.name](config, objective, epochs)


class PerTypeScheduler(TrialScheduler):  # type: ignore[misc]
    """Hands each trial to the scheduler of its machine type: AUC levels differ between types.

    Args:
        schedulers: One per machine type.
    """

    def __init__(self, schedulers: Mapping[str, TrialScheduler]) -> None:
        self._schedulers = dict(schedulers)
        self.stopped: set[str] = set()  # ids of trials that a scheduler ended early
        self.losses: dict[str, list[str]] = {}  # trial id -> why its workers died, one by one

    def replay(self, machine_type: str, trial: FrozenTrial, trial_id: str) -> None:
        """Tell the rungs what a trial of an earlier, killed run had reported.

        Args:
            machine_type: The trial's type.
            trial: As the storage has it.
            trial_id: The name under which Tune will report for it, or any unused one.
        """
        scheduler = self._schedulers[machine_type]
        if isinstance(scheduler, AsyncHyperBandScheduler):
            ghost = Trial("replayed", trial_id=trial_id, stub=True)
            scheduler.on_trial_add(None, ghost)
            for epoch, value in sorted(trial.intermediate_values.items()):
                result = {"epoch": epoch, scheduler.metric: value}
                scheduler.on_trial_result(None, ghost, result)
            scheduler.on_trial_remove(None, ghost)  # what the rungs know stays

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See TrialScheduler; remembers whom it stopped."""
        if not math.isfinite(result["objective"]):
            return str(TrialScheduler.STOP)
        decision: str = self._of(trial).on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.stopped.add(trial.trial_id)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """See TrialScheduler."""
        if math.isfinite(result.get("objective", math.nan)):
            self._of(trial).on_trial_complete(tune_controller, trial, result)
        else:
            self._of(trial).on_trial_remove(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler; called for every lost worker, whether the trial is retried or not."""
        error = Path(trial.error_file).read_text()
        self.losses.setdefault(trial.trial_id, []).append(reason_of_loss(error))
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        """The first trial that waits; our searcher never lets many wait."""
        for trial in tune_controller.get_trials():
            if trial.status == Trial.PENDING:
                return trial
        return None

    def debug_string(self) -> str:
        """See TrialScheduler."""
        return ", ".join(self._schedulers)

    def _of(self, trial: Trial) -> TrialScheduler:
        return self._schedulers[trial.config["machine_type"]]
