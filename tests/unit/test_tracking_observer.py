"""What the tracker is told of a machine type: how its trials stand, and the best of them."""

from collections.abc import Mapping
from typing import Any

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search.background import TrackingObserver
from search.studies import TypeStudy
from tests.doubles import space_file
from tests.study_fixtures import new_study


class Told:
    """In the place of a `BackgroundTracker`."""

    def __init__(self) -> None:
        self.trials: list[int] = []
        self.parents: list[tuple[str, Mapping[str, float | None], int]] = []

    def submit_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        self.trials.append(trial.number)

    def submit_parent(
        self, machine_type: str, metrics: Mapping[str, float | None], step: int
    ) -> None:
        self.parents.append((machine_type, dict(metrics), step))


def end(study: TypeStudy, state: TrialState, value: float | None = None) -> FrozenTrial:
    trial = study.ask()
    assert trial is not None
    study.record_epoch(trial.number, 1, {"val_auc": value or 0.5}, value or 0.5)
    study.finish(trial.number, state, value=value, reason=None if value else "x")
    return study.trial(trial.number)


def test_counts_go_on_where_an_earlier_run_left_them() -> None:
    study = new_study(InMemoryStorage(), space=space_file(trials=9))
    end(study, TrialState.COMPLETE, 0.7)
    end(study, TrialState.FAIL)
    told: Any = Told()
    observer = TrackingObserver(told, {"fan": study})
    running = study.ask()
    assert running is not None
    observer.on_trial("fan", running)
    assert told.parents == []
    for state, value in [(TrialState.COMPLETE, 0.6), (TrialState.COMPLETE, 0.8)]:
        observer.on_trial("fan", end(study, state, value))
    observer.on_trial("fan", end(study, TrialState.PRUNED))
    best = [metrics["best_objective"] for _, metrics, _ in told.parents]
    assert best == [0.7, 0.8, 0.8]
    counts = {"complete": 3, "pruned": 1, "failed": 1, "best_objective": 0.8}
    assert told.parents[-1] == ("fan", counts, 5)
    assert told.trials == [2, 3, 4, 5]


def test_without_a_complete_trial_there_is_no_best() -> None:
    study = new_study(InMemoryStorage(), space=space_file(trials=9))
    told: Any = Told()
    TrackingObserver(told, {"fan": study}).on_trial("fan", end(study, TrialState.FAIL))
    assert told.parents[-1][1]["best_objective"] is None
