"""A search of one or more machine types without Ray, for tests of who decides what.

`FakeTune` makes the calls that Tune's controller makes, on an analytic objective.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from optuna.trial import FrozenTrial, TrialState

from search.config import SamplerConfig
from search.schedulers import StudyScheduler
from search.searcher import StudySearcher
from search.space import all_params
from search.storages import open_storage
from search.studies import TypeStudy
from tests.doubles import PARAMETERS, FakeTune, result_of, space_file
from tests.study_fixtures import new_study

EPOCHS = 4
SAMPLERS = get_args(SamplerConfig.model_fields["name"].annotation)


class Recorder:
    """An observer; keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, TrialState, int]] = []

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        epochs = len(trial.intermediate_values)
        self.told.append((machine_type, trial.number, trial.state, epochs))


@dataclass
class Search:
    """One run of a search: ends with its process, the storage stays."""

    studies: Mapping[str, TypeStudy]
    searcher: StudySearcher
    tune: FakeTune
    recorder: Recorder

    def run_trial(self, level: float, epochs: int = EPOCHS) -> FrozenTrial:
        """Start a trial and let it report; how it stands then."""
        trial = self.tune.start()
        assert trial is not None
        for epoch in range(1, epochs + 1):
            if not self.tune.report(trial, result_of(epoch, EPOCHS, level)):
                break
        return self.studies[trial.config["machine_type"]].trial(trial.config["number"])


@contextmanager
def searching(
    folder: Path,
    n_trials: int,
    *,
    sampler: str = "random",
    scheduler: str = "asha",
    machine_types: tuple[str, ...] = ("fan",),
    slots: int = 2,
    parallel: int | None = None,
    finalists: int = 1,
    **settings: Any,
) -> Iterator[Search]:
    """What a process sets up that starts or continues a search."""
    rates = {"kind": "categorical", "choices": [1e-4, 1e-3, 1e-2, 1e-1]}
    space = space_file(
        trials=n_trials,
        epochs=EPOCHS,
        sampler={"name": sampler, "startup_trials": 3},
        scheduler={"name": scheduler, "reduction_factor": 2.0},
        parameters=PARAMETERS | ({"train.lr": rates} if sampler == "grid" else {}),
    )
    with open_storage(folder / "s") as storage:
        studies = {
            name: new_study(storage, name, space=space, **settings) for name in machine_types
        }
        judge = StudyScheduler(studies, space.scheduler, EPOCHS)
        recorder = Recorder()
        searcher = StudySearcher(
            studies,
            n_trials=n_trials,
            build_config=lambda name, trial: {
                "machine_type": name,
                "number": trial.number,
                "params": all_params(trial),
            },
            scheduler=judge,
            slots=lambda: slots,
            parallel=parallel,
            finalists=finalists,
            observers=(recorder,),
        )
        yield Search(studies, searcher, FakeTune(searcher, judge, folder), recorder)


def curve(level: float, epochs: int = EPOCHS) -> dict[int, float]:
    """The intermediate values of a trial that reports so many epochs."""
    return {epoch: result_of(epoch, EPOCHS, level)["objective"] for epoch in range(1, epochs + 1)}
