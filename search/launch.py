"""Runs the trials of all machine types in one Tune run; nothing else starts Ray or a Tuner."""

import logging
import math
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from search.config import Resources, SpaceFile
from search.failures import WORKER_RETRIES
from search.hangs import HangWatch
from search.interrupt import Interrupt
from search.schedulers import StudyScheduler
from search.searcher import Config, Observer, SnapshotFreeGenerator, StudySearcher, cached
from search.space import all_params
from search.studies import EPOCH, StudyError, TypeStudy
from search.trainable import TrialRunner

_GPU_SHARE = 0.25  # of a GPU for a trial where `resources.gpu` is auto; not yet measured on one
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they pin every finished trial in memory
    # Our searcher suggests as many trials as fit; with less than that here, as by default, the
    # workers would start one after the other.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `search.interrupt` has it
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are never read
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` (or `RAY_ADDRESS`), else start one on this machine.

    Raises:
        StudyError: No cluster answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.update(_TUNE_ENVIRONMENT)
    if address and address != "auto":
        _require_listener(address)
    # "local", for without an address Ray joins whatever was last started on this machine, or waits
    # for it in vain where that is gone.
    options = {"address": address} if address else {"address": "local", "include_dashboard": False}
    with redirect_stdout(sys.stderr):  # Ray prints its news, but stdout is for the summary
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise StudyError(f"no Ray cluster answers at --address {address}: {error}") from error
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()


def _require_listener(address: str) -> None:
    """Ray itself tries an address at which nobody listens for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise StudyError(
            f"--address must be HOST:PORT of a running Ray head (ray status shows it), got "
            f"{address!r}: {error}"
        ) from error


def trial_resources(wanted: Resources) -> dict[str, float]:
    """What one trial asks Ray for; "auto" is a share of a GPU if the cluster has any.

    Raises:
        StudyError: The cluster cannot hold a single trial.
    """
    available = ray.cluster_resources()
    gpu = wanted.gpu
    if gpu == "auto":
        gpu = _GPU_SHARE if available.get("GPU", 0) else 0.0
    resources = {"cpu": wanted.cpu, "gpu": gpu}
    for name, amount in resources.items():
        if amount > available.get(name.upper(), 0):
            raise StudyError(
                f"resources.{name} must fit into the cluster, which has "
                f"{available.get(name.upper(), 0):g}, got {amount:g}"
            )
    return resources


def run_trials(
    studies: Mapping[str, TypeStudy],
    space: SpaceFile,
    *,
    folder: Path,
    packs: Mapping[str, Path],
    resources: Mapping[str, float],
    time_budget_s: float | None = None,
    observers: tuple[Observer, ...] = (),
    trainable: type[tune.Trainable] = TrialRunner,
) -> bool:
    """Bring every study to its number of trials, on the connected cluster.

    Args:
        studies: One per machine type.
        space: Budgets, scheduler.
        folder: Of the study; checkpoints go below it.
        packs: Pack of each machine type.
        resources: Of one trial, as `trial_resources` returns them.
        time_budget_s: Stop after so many seconds; what is unfinished is resumed next time.
        observers: Told of every change.
        trainable: What runs a trial.

    Returns:
        False if Ctrl-C ended it.
    """

    def config_of(machine_type: str, trial: FrozenTrial) -> Config:
        study, number = studies[machine_type], trial.number
        checkpoint, seed = checkpoint_folder(folder, machine_type, number), study.train_seed(number)
        return worker_config(
            study, number, space, packs[machine_type], resources, checkpoint=checkpoint, seed=seed
        )

    watch = HangWatch(space.study.hang_minutes)
    scheduler = StudyScheduler(studies, space.scheduler, space.study.epochs, watch)
    searcher = StudySearcher(
        studies,
        n_trials=space.study.trials,
        build_config=config_of,
        scheduler=scheduler,
        slots=cached(lambda: _slots(resources), seconds=1.0),
        parallel=space.study.parallel,
        observers=(*observers, _CheckpointSweeper(folder)),
    )
    scratch = folder / "tune"
    shutil.rmtree(scratch, ignore_errors=True)
    interrupt = Interrupt()
    tuner = tune.Tuner(
        tune.with_resources(trainable, dict(resources)),
        tune_config=tune.TuneConfig(
            search_alg=SnapshotFreeGenerator(searcher),
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            time_budget_s=time_budget_s,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(folder.absolute()),
            stop=tune.stopper.CombinedStopper(
                interrupt, HoursStopper(studies, space.study.hours, resources)
            ),
            failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with interrupt.listening():
        tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    return not interrupt.is_set


def worker_config(
    study: TypeStudy,
    number: int,
    space: SpaceFile,
    pack: Path,
    resources: Mapping[str, float],
    *,
    checkpoint: Path,
    seed: int,
) -> Config:
    """What a worker needs to train a trial's parameters; see `trainable.open_training`."""
    owned = {"train.epochs": space.study.epochs, "train.seed": seed}
    return {
        "machine_type": study.machine_type,
        "number": number,
        "params": all_params(study.trial(number)) | owned,
        "pack": str(pack.absolute()),
        "objective": study.objective,
        "checkpoint": str(checkpoint),
        "threads": max(1, int(resources["cpu"])),
    }


def checkpoint_folder(study_folder: Path, machine_type: str, number: int) -> Path:
    """Where a trial keeps its state, whichever worker runs it and in whichever attempt."""
    return (study_folder / "checkpoints" / machine_type / f"{number:05d}").absolute()


def spent_hours(study: TypeStudy, resources: Mapping[str, float]) -> float:
    """Hours of GPUs, without any of cores, that a study's trials have held in epochs they told."""
    seconds = sum(
        metrics.get("seconds", 0.0)
        for trial in study.trials()
        for name, metrics in trial.user_attrs.items()
        if name.startswith(EPOCH)
    )
    return float(seconds * (resources["gpu"] or resources["cpu"]) / 3600)


class HoursStopper(tune.Stopper):  # type: ignore[misc]
    """Ends a Tune run when all studies together have spent their hours."""

    def __init__(
        self,
        studies: Mapping[str, TypeStudy],
        hours: float | None,
        resources: Mapping[str, float],
    ) -> None:
        self._limit = math.inf if hours is None else hours
        self._spent = cached(
            lambda: sum(spent_hours(study, resources) for study in studies.values()), seconds=1.0
        )

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stops no single trial."""
        return False

    def stop_all(self) -> bool:
        """See Stopper."""
        return self._limit < math.inf and self._spent() >= self._limit


class _CheckpointSweeper:
    """Deletes the state of trials that can win nothing any more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        if trial.state in (TrialState.PRUNED, TrialState.FAIL):
            folder = checkpoint_folder(self._folder, machine_type, trial.number)
            shutil.rmtree(folder, ignore_errors=True)


def _slots(resources: Mapping[str, float]) -> int:
    """Trials that fit into the cluster as it is now."""
    available = ray.cluster_resources()
    fits = [
        available.get(name.upper(), 0) // amount for name, amount in resources.items() if amount
    ]
    return max(1, int(min(fits)))


def _trial_name(trial: Any) -> str:
    return f"{trial.config['machine_type']}-{trial.config['number']}"
