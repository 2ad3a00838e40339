"""Runs the trials of all machine types in one Tune run; nothing else starts Ray or a Tuner."""

import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from search.config import Resources, SpaceFile
from search.failures import WORKER_RETRIES, longest_silence_s
from search.hangs import HangWatch
from search.interrupt import Interrupt
from search.lost_workers import retry_lost_workers
from search.machines import (
    Wish,
    bundle_of,
    n_fitting,
    require_machine,
    threads_of,
    wait_for_machine,
    withdrawn_at_the_end,
)
from search.schedulers import StudyScheduler
from search.searcher import Config, Observer, SnapshotFreeGenerator, StudySearcher, cached
from search.shared_checks import StorageStopper
from search.shared_files import PATIENCE_S, SharedFiles
from search.space import all_params
from search.studies import EPOCH, StudyError, TypeStudy, held_hours
from search.trainable import TrialRunner

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they pin every finished trial in memory
    # Our searcher suggests as many trials as fit; with less than that here, as by default, the
    # workers would start one after the other.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `search.interrupt` has it
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are never read
    "RAY_AIR_NEW_OUTPUT": "0",
    # Of a task whose process is killed for its memory; Ray's own is without end, `max_retries` is
    # not meant for that.
    "RAY_task_oom_retries": str(WORKER_RETRIES),
}


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` (or `RAY_ADDRESS`), else start one on this machine.

    From then on SIGTERM is taken as Ctrl-C, to the end of the process: the handler that Ray leaves
    there ends it without a word.

    Raises:
        StudyError: No cluster answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.update(_ENVIRONMENT)
    if address and address != "auto":
        _require_listener(address)
    # "local", for without an address Ray joins whatever was last started on this machine, or waits
    # for it in vain where that is gone.
    options = {"address": address} if address else {"address": "local", "include_dashboard": False}
    with redirect_stdout(sys.stderr):  # Ray prints its news, but stdout is for the summary
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            said = " ".join(str(error).split())
            raise StudyError(f"no Ray cluster answers at --address {address}: {said}") from error
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        if threading.current_thread() is threading.main_thread():  # Python forbids it elsewhere
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with withdrawn_at_the_end() if address else nullcontext():
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


def trial_resources(
    wanted: Resources, share_of_gpu: Callable[[], float] = lambda: 1.0
) -> dict[str, float]:
    """What one trial asks Ray for.

    Waits for the first machine where there is only a head that steers.

    Args:
        wanted: What the space file says.
        share_of_gpu: Finds what "auto" is, see `search/gpu_share.py`; asked if there are GPUs.

    Raises:
        StudyError: No machine of the cluster can hold a single trial.
    """
    stated = 0.0 if wanted.gpu == "auto" else wanted.gpu
    wait_for_machine(bundle_of({"cpu": wanted.cpu, "gpu": stated}))
    gpu = wanted.gpu
    if gpu == "auto":
        gpu = share_of_gpu() if ray.cluster_resources().get("GPU", 0) else 0.0
    resources = {"cpu": wanted.cpu, "gpu": gpu}
    require_machine(bundle_of(resources))
    return resources


def run_trials(
    studies: Mapping[str, TypeStudy],
    space: SpaceFile,
    *,
    folder: Path,
    packs: Mapping[str, str],
    resources: Mapping[str, float],
    files: SharedFiles | None = None,
    time_budget_s: float | None = None,
    observers: tuple[Observer, ...] = (),
    trainable: type[tune.Trainable] = TrialRunner,
) -> bool:
    """Bring every study to its number of trials, on the connected cluster.

    Args:
        studies: One per machine type.
        space: Budgets, scheduler.
        folder: Of the study, on this machine.
        packs: Pack of each machine type, as `files` names it.
        resources: Of one trial, as `trial_resources` returns them.
        files: Of all nodes, checkpoints among them; by default those beside `folder`.
        time_budget_s: Stop after so many seconds; what is unfinished is resumed next time.
        observers: Told of every change.
        trainable: What runs a trial.

    Returns:
        False if Ctrl-C ended it, or the shared storage.
    """
    if are_hours_spent(studies, space.study.hours, resources):
        # Tune asks its stoppers only after it has taken up trials, which would train nothing.
        return True
    files = files or SharedFiles(folder.parent)

    def config_of(machine_type: str, trial: FrozenTrial) -> Config:
        return worker_config(
            studies[machine_type],
            trial.number,
            space,
            resources,
            files=files,
            pack=packs[machine_type],
            checkpoint=checkpoint_name(files, folder, machine_type, trial.number),
            seed=studies[machine_type].train_seed(trial.number),
        )

    watch = HangWatch(space.study.hang_minutes)
    wish = Wish(studies, space.study.trials, space.study.parallel, resources)
    wish.make()
    scheduler = StudyScheduler(studies, space.scheduler, space.study.epochs, watch)
    sweeper = _CheckpointSweeper(files, folder)
    searcher = StudySearcher(
        studies,
        n_trials=space.study.trials,
        build_config=config_of,
        scheduler=scheduler,
        slots=cached(lambda: _slots(resources), seconds=1.0),
        parallel=space.study.parallel,
        finalists=max(1, space.confirmation.top),
        observers=(*observers, sweeper, wish),
    )
    scratch = folder / "tune"
    shutil.rmtree(scratch, ignore_errors=True)
    interrupt, refusal = Interrupt(), StorageStopper(scheduler.losses)
    tuner = tune.Tuner(
        tune.with_resources(trainable, dict(resources)),
        tune_config=tune.TuneConfig(
            search_alg=SnapshotFreeGenerator(searcher),
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            time_budget_s=time_budget_s,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(folder.absolute()),
            stop=tune.stopper.CombinedStopper(
                interrupt, refusal, HoursStopper(studies, space.study.hours, resources)
            ),
            failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    retry_lost_workers()
    with interrupt.listening(), sweeper.sweeping():
        tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    return not (interrupt.is_set or refusal.is_set)


def worker_config(
    study: TypeStudy,
    number: int,
    space: SpaceFile,
    resources: Mapping[str, float],
    *,
    files: SharedFiles,
    pack: str,
    checkpoint: str,
    seed: int,
) -> Config:
    """What a worker needs to train a trial's parameters; see `trainable.open_training`."""
    owned = {"train.epochs": space.study.epochs, "train.seed": seed}
    return {
        "machine_type": study.machine_type,
        "number": number,
        "params": all_params(study.trial(number)) | owned,
        "objective": study.objective,
        "files": files.root,
        # Who waits for storage reports nothing, and must not be taken to hang.
        "patience_s": min(PATIENCE_S, longest_silence_s(space.study.hang_minutes, 0.0) / 2),
        "pack": str(pack),
        "checkpoint": checkpoint,
        "threads": threads_of(resources),
    }


def checkpoint_name(files: SharedFiles, folder: Path, machine_type: str, number: int) -> str:
    """Where a trial keeps its state, whichever worker runs it and in whichever attempt."""
    return files.name(folder.name, "checkpoints", machine_type, f"{number:05d}")


def spent_hours(study: TypeStudy, resources: Mapping[str, float]) -> dict[str, float]:
    """What a study's trials have held in epochs they told, see `held_hours`."""
    epochs = (
        record
        for trial in study.trials()
        for name, record in trial.user_attrs.items()
        if name.startswith(EPOCH)
    )
    return held_hours(epochs, resources)


def are_hours_spent(
    studies: Mapping[str, TypeStudy], hours: float | None, resources: Mapping[str, float]
) -> bool:
    """Whether all studies together have spent the hours they may; None is without end."""
    if hours is None:
        return False
    spent = sum(sum(spent_hours(study, resources).values()) for study in studies.values())
    return spent >= hours


class HoursStopper(tune.Stopper):  # type: ignore[misc]
    """Ends a Tune run when all studies together have spent their hours."""

    def __init__(
        self,
        studies: Mapping[str, TypeStudy],
        hours: float | None,
        resources: Mapping[str, float],
    ) -> None:
        self._is_over = cached(lambda: are_hours_spent(studies, hours, resources), seconds=1.0)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stops no single trial."""
        return False

    def stop_all(self) -> bool:
        """See Stopper."""
        return bool(self._is_over())


class _CheckpointSweeper:
    """Deletes the state of trials that can win nothing any more; a slow store delays nobody."""

    def __init__(self, files: SharedFiles, folder: Path) -> None:
        self._files, self._folder = files, folder
        self._thread = ThreadPoolExecutor(1)

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """Everything is deleted at its end; an exception waits for nothing and leaves rubbish."""
        try:
            yield
            self._thread.shutdown()
        except BaseException:
            self._thread.shutdown(wait=False, cancel_futures=True)
            raise

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        if trial.state in (TrialState.PRUNED, TrialState.FAIL):
            name = checkpoint_name(self._files, self._folder, machine_type, trial.number)
            self._thread.submit(self._files.delete, name)


def _slots(resources: Mapping[str, float]) -> int:
    """Trials that fit into the cluster as it is now, one at least."""
    return max(1, n_fitting(bundle_of(resources)))


def _trial_name(trial: Any) -> str:
    return f"{trial.config['machine_type']}-{trial.config['number']}"


def _folder_name(trial: Any) -> str:
    """One that was paused goes on as another trial of Tune's."""
    return f"{_trial_name(trial)}-{trial.trial_id}"
