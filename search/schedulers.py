"""Who ends trials early, by name, and how Ray Tune is told.

The rules compare a trial with what the storage has of the others and keep no state of their own, so
a search that was killed and continued judges as if nothing had happened. (Ray's schedulers keep
their rungs in memory, and its median and Hyperband ones pause trials.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from search.config import SchedulerConfig
from search.failures import reason_of_loss
from search.hangs import HangWatch
from search.samplers import derive_seed
from search.studies import LET_ON, STOPPED, TypeStudy
from search.views import paused_after

_LEAST_CURVES = 3  # that a median is made of

Curve = Mapping[int, float]  # epoch -> objective
# (settings, most epochs, number of the trial, its curve so far, other trials) -> whether to stop it
Rule = Callable[[SchedulerConfig, int, int, Curve, Sequence[FrozenTrial]], bool]


def _asha(
    config: SchedulerConfig, epochs: int, number: int, curve: Curve, others: Sequence[FrozenTrial]
) -> bool:
    """Asynchronous successive halving, stopping variant (Li et al., MLSys 2020).

    At each rung a trial goes on if it is among the best 1 / reduction_factor of those that have
    got there so far.
    """
    return _is_behind(config, _rungs(config, epochs), curve, others)


def _hyperband(
    config: SchedulerConfig, epochs: int, number: int, curve: Curve, others: Sequence[FrozenTrial]
) -> bool:
    """Successive halving from each rung on, a trial's number deciding from which (JMLR 2018)."""
    rungs = _rungs(config, epochs)
    first = _bracket(config, rungs, number)
    rivals = [t for t in others if _bracket(config, rungs, t.number) == first]
    return _is_behind(config, rungs[first:], curve, rivals)


def _median(
    config: SchedulerConfig, epochs: int, number: int, curve: Curve, others: Sequence[FrozenTrial]
) -> bool:
    """Median stopping (Golovin et al., KDD 2017): best so far under the median running mean."""
    epoch = max(curve)
    if not config.grace(epochs) <= epoch < epochs:
        return False
    means = [
        np.mean([value for e, value in t.intermediate_values.items() if e <= epoch])
        for t in others
        if epoch in t.intermediate_values
    ]
    return len(means) >= _LEAST_CURVES and max(curve.values()) < float(np.median(means))


RULES: dict[str, Rule] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "asha_pause": lambda config, epochs, number, curve, others: False,  # see `due`
    "none": lambda config, epochs, number, curve, others: False,
}


def due(config: SchedulerConfig, epochs: int, trials: Sequence[FrozenTrial]) -> list[int]:
    """Numbers of the paused trials that may go on, those that are furthest first.

    Asynchronous successive halving as its authors describe it (algorithm 2): every trial pauses at
    each rung, and goes on once it is among the best 1 / reduction_factor of all that got there.
    Nobody passes a rung for lack of rivals.
    """
    found: list[int] = []
    for rung in reversed(_rungs(config, epochs)):
        reached = [t for t in trials if rung in t.intermediate_values]
        ranked = sorted(reached, key=lambda t: (-t.intermediate_values[rung], t.number))
        best = ranked[: int(len(reached) / config.reduction_factor)]
        found += [t.number for t in best if paused_after(t) == rung]
    return found


def furthest(paused: Sequence[FrozenTrial]) -> int:
    """Number of the best of the paused trials that got furthest."""

    def rank(trial: FrozenTrial) -> tuple[int, float, int]:
        epoch = max(trial.intermediate_values)
        return epoch, trial.intermediate_values[epoch], -trial.number

    return max(paused, key=rank).number


def _rungs(config: SchedulerConfig, epochs: int) -> list[int]:
    """Epochs before the last one after which trials are compared."""
    rungs: list[int] = []
    grace = config.grace(epochs)
    while (rung := round(grace * config.reduction_factor ** len(rungs))) < epochs:
        rungs.append(rung)
    return rungs


def _bracket(config: SchedulerConfig, rungs: Sequence[int], number: int) -> int:
    """Index of the first rung at which a trial is compared; len(rungs) for never.

    As many trials start at a rung as give every bracket the same number of epochs to spend.
    """
    n = len(rungs) + 1
    shares = [config.reduction_factor ** (n - 1 - i) / (n - i) for i in range(n)]
    place = derive_seed("bracket", number) / 2**31 * sum(shares)
    return int(np.searchsorted(np.cumsum(shares), place, side="right"))


def _is_behind(
    config: SchedulerConfig, rungs: Sequence[int], curve: Curve, others: Sequence[FrozenTrial]
) -> bool:
    epoch = max(curve)
    if epoch not in rungs:
        return False
    reached = [t.intermediate_values[epoch] for t in others if epoch in t.intermediate_values]
    if not reached:
        return False
    return curve[epoch] < float(np.quantile(reached, 1 - 1 / config.reduction_factor))


class StudyScheduler(TrialScheduler):  # type: ignore[misc]
    """Judges each trial among those of its machine type: AUC levels differ between types.

    Args:
        studies: One per machine type.
        config: The rule.
        epochs: Most epochs of a trial.
        watch: Ends trials that hang.
    """

    def __init__(
        self,
        studies: Mapping[str, TypeStudy],
        config: SchedulerConfig,
        epochs: int,
        watch: HangWatch | None = None,
    ) -> None:
        self._studies, self._config, self._epochs = dict(studies), config, epochs
        self._rule, self._watch = RULES[config.name], watch or HangWatch(None)
        self.stopped: set[str] = set()  # ids of trials that were ended early
        self.pauses = config.name == "asha_pause"
        self.least_rivals = config.reduction_factor**2  # before one goes on unjudged
        self.paused: set[str] = set()  # ids of trials that were ended, and may go on later
        self.losses: dict[str, list[str]] = {}  # trial id -> why its workers died, one by one
        self._waiting: list[Trial] = []  # that nobody runs yet, in the order in which they came

    @property
    def n_waiting(self) -> int:
        """Trials that nobody runs yet."""
        return len(self._waiting)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler; called again, for a further attempt, after a worker was lost."""
        if trial.trial_id in self.losses:
            study = self._studies[trial.config["machine_type"]]
            study.add_attempts(trial.config["number"], 1)
        self._waiting.append(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See TrialScheduler; remembers whom it stopped."""
        self._watch.heard(trial, result.get("time_this_iter_s", 0.0))
        if not math.isfinite(result["objective"]):
            return str(TrialScheduler.STOP)
        study, number = self._studies[trial.config["machine_type"]], trial.config["number"]
        stored = study.trial(number)
        before, epoch = stored.intermediate_values, result["epoch"]
        # Rungs up to the one that let it on are passed, also where a state of before is continued.
        if self.pauses and epoch > stored.user_attrs.get(LET_ON, 0):
            return self._pause(trial, epoch)
        is_stopped = stored.user_attrs.get(STOPPED) == epoch  # in a search that was killed
        if epoch in before and not is_stopped:  # reported again after a restart, judged already
            return str(TrialScheduler.CONTINUE)
        curve, rivals = before | {epoch: result["objective"]}, study.rivals(number)
        if not is_stopped and not self._rule(self._config, self._epochs, number, curve, rivals):
            return str(TrialScheduler.CONTINUE)
        self.stopped.add(trial.trial_id)
        return str(TrialScheduler.STOP)

    def _pause(self, trial: Trial, epoch: int) -> str:
        """End Tune's trial at a rung; going on, it is a new one that finds its checkpoint."""
        if epoch not in _rungs(self._config, self._epochs):
            return str(TrialScheduler.CONTINUE)
        self.paused.add(trial.trial_id)
        return str(TrialScheduler.STOP)

    def due(self, study: TypeStudy) -> list[int]:
        """Numbers of a study's paused trials that may go on now, the first one first."""
        return due(self._config, self._epochs, study.trials())

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """See TrialScheduler; forgets each metric's past, most of what Tune keeps of a trial."""
        if "failure" not in result:  # no epoch; a last one comes here alone
            self._watch.heard(trial, result.get("time_this_iter_s", 0.0))
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler; called for every lost worker, whether the trial is retried or not."""
        reason = self._watch.reason(trial) or reason_of_loss(Path(trial.error_file).read_text())
        self.losses.setdefault(trial.trial_id, []).append(reason)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler."""

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        """The trial that has waited least: Tune has new workers started for those before it.

        It gives the trial named here the next worker that is free and kills the one that is being
        started for it. Named in their order, trials that end sooner than a worker starts would
        keep all but the first workers from ever joining. None waits for long, for our searcher
        suggests no more than the slots can take.

        Tune asks in every turn of its loop, so those that hang are looked for here.
        """
        live = tune_controller.get_live_trials()
        self._watch.look(live)
        self._waiting = [t for t in self._waiting if t in live and t.status == Trial.PENDING]
        return self._waiting[-1] if self._waiting else None

    def debug_string(self) -> str:
        """See TrialScheduler."""
        return self._config.name
