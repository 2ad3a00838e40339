"""Runs searches in virtual time: our searcher, samplers and schedulers, but no Ray and no training.

What trials would report is looked up; the workers take as long as the table says, and callbacks
come in the order of Ray's TuneController (`tests.doubles.FakeTune`).
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial

from search.config import SamplerConfig, SchedulerConfig
from search.schedulers import StudyScheduler
from search.searcher import StudySearcher
from search.space import Params, Space, all_params
from search.studies import TypeStudy
from tests.doubles import FakeTune

_TYPE, _OBJECTIVE = "simulated", "val_auc"
NO_SCHEDULER = SchedulerConfig(name="none")


@dataclass(frozen=True)
class Step:
    """One report of a trial."""

    epoch: int  # 1-based, rising
    value: float | None  # the objective, maximised; None where the training fails instead
    seconds: float  # of virtual time since the trial's report before


@dataclass(frozen=True)
class Report:
    """A step as the search met it."""

    time_s: float
    number: int
    step: Step


Replay = Callable[[Params, int], Sequence[Step]]  # (parameters, trial number) -> all its steps


def simulate(
    replay: Replay,
    space: Space,
    *,
    sampler: SamplerConfig,
    scheduler: SchedulerConfig = NO_SCHEDULER,
    n_trials: int,
    epochs: int = 1,
    workers: int = 1,
    deterministic: bool = False,
    seed: int = 0,
) -> tuple[list[FrozenTrial], list[Report]]:
    """One search of one machine type, from its first trial to its last.

    Args:
        replay: What a trial reports if nobody stops it.
        space: What is searched.
        sampler: Who suggests.
        scheduler: Who stops trials early.
        n_trials: Budget.
        epochs: The last epoch of a trial that nobody stops.
        workers: Trials that run at once.
        deterministic: As `study.deterministic` of a space file.
        seed: Of the search.

    Returns:
        The trials as the storage has them, and all reports in order of virtual time.
    """
    storage = InMemoryStorage()
    study = TypeStudy(
        storage,
        name="bench",
        machine_type=_TYPE,
        space=space,
        sampler=sampler,
        seed=seed,
        identity={},
        lag=workers if deterministic else None,
    )
    judge = StudyScheduler({_TYPE: study}, scheduler, epochs)
    searcher = StudySearcher(
        {_TYPE: study},
        n_trials=n_trials,
        build_config=lambda machine_type, trial: {
            "machine_type": machine_type,
            "number": trial.number,
            "trial": trial,
        },
        scheduler=judge,
        slots=lambda: workers,
    )
    tune = FakeTune(searcher, judge, Path())  # no worker dies, so nothing is written there
    reports = list(_run(tune, replay, epochs, workers))
    return study.trials(), reports


def _run(tune: FakeTune, replay: Replay, epochs: int, workers: int) -> Iterator[Report]:
    """Ask until there is no more to be had, then handle the next report, as Tune's loop does."""
    now, ties = 0.0, itertools.count()
    queue: list[tuple[float, int, Trial, Step, Iterator[Step]]] = []

    def train(trial: Trial, steps: Iterator[Step]) -> None:
        step = next(steps)
        heapq.heappush(queue, (now + step.seconds, next(ties), trial, step, steps))

    def serve() -> None:
        while tune.waiting and len(queue) < workers:
            trial = tune.waiting.pop(0)
            frozen = trial.config["trial"]
            told = max(frozen.intermediate_values, default=0)  # of one that was paused
            steps = replay(all_params(frozen), frozen.number)
            train(trial, iter([step for step in steps if step.epoch > told]))

    while True:
        serve()
        while trial := tune.start():
            tune.waiting.append(trial)
            serve()
        if not queue:
            return
        now, _, trial, step, steps = heapq.heappop(queue)
        yield Report(now, trial.config["trial"].number, step)
        if tune.report(trial, _result(step, epochs)):
            train(trial, steps)


def _result(step: Step, epochs: int) -> dict[str, object]:
    """What `TrialRunner` reports."""
    if step.value is None:
        return {"failure": f"non-finite: in epoch {step.epoch}", "done": True}
    return {
        "epoch": step.epoch,
        "metrics": {},
        "objective": step.value,
        _OBJECTIVE: step.value,
        "is_final": step.epoch >= epochs,
        "done": step.epoch >= epochs,
    }
