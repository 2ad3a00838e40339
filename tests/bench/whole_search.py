"""A search as `search.run` runs it, with workers that a bench chooses."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from ray import tune

from search.background import BackgroundTracker, TrackingObserver
from search.config import SpaceFile
from search.launch import cluster, run_trials
from search.progress import Progress
from search.searcher import Observer
from search.space import Space
from search.storages import open_storage
from search.studies import TypeStudy
from search.tracking import Tracker, check

RESOURCES = {"cpu": 1.0, "gpu": 0.0}


class Timed:
    """Wraps an observer, and adds up how long the control loop is in it."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self.seconds = observer, 0.0

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """Pass on."""
        started = time.perf_counter()
        self._observer.on_trial(machine_type, trial)
        self.seconds += time.perf_counter() - started


def run_search(
    folder: Path,
    space: SpaceFile,
    packs: Mapping[str, Path],
    trainable: type[tune.Trainable],
    *observers: Observer,
) -> float:
    """Searcher, scheduler, journal, MLflow (sqlite) and progress, on a Ray of its own.

    Args:
        folder: Gets everything; the study's own is `s` below it.
        space: Budgets, sampler, scheduler, parameters.
        packs: Of each machine type.
        trainable: As `run_trials` takes it.
        observers: Beside those of a search.

    Returns:
        The share of the trials' time that the control loop was with the tracker.
    """
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    check(uri)
    os.environ.pop("RAY_ADDRESS", None)
    with open_storage(folder / "s") as storage, cluster(None):
        studies = {
            machine_type: TypeStudy(
                storage,
                name="s",
                machine_type=machine_type,
                space=Space(space.parameters),
                sampler=space.sampler,
                seed=space.study.seed,
                identity={},
            )
            for machine_type in packs
        }
        background = BackgroundTracker(Tracker(uri, folder / "artifacts", "s"))
        tracking = Timed(TrackingObserver(background, studies))
        progress = Progress(studies, space.study.trials, space.study.epochs, lambda: "")
        started = time.perf_counter()
        with progress:
            run_trials(
                studies,
                space,
                folder=folder / "s",
                packs={machine_type: str(pack) for machine_type, pack in packs.items()},
                resources=RESOURCES,
                observers=(progress, tracking, *observers),
                trainable=trainable,
            )
        wall = time.perf_counter() - started
        left = background.close(60.0)
        assert not left, f"{left} trials never reached MLflow"
    return tracking.seconds / wall


def logical_slots(n: int) -> Mapping[str, Any]:
    """Environment in which a Ray of one's own has so many CPUs, whatever the machine has."""
    return {**os.environ, "RAY_OVERRIDE_RESOURCES": f'{{"CPU": {n}, "GPU": 0}}'}
