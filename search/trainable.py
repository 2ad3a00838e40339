"""One trial on a worker: parameters to a training, an epoch a step, a checkpoint after each."""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray import tune

from mimimi_core.checkpoint import CheckpointError
from mimimi_core.config import TrialConfig
from mimimi_core.crops import Crops
from mimimi_core.pack import Pack, open_pack
from mimimi_core.training import Training
from search.failures import reason_of
from search.shared_files import PATIENCE_S, SharedFiles, SharedFilesError

logger = logging.getLogger(__name__)

CHECKPOINT = "state.pt"


class TrialRunner(tune.Trainable):  # type: ignore[misc]
    """Runs whatever configuration it is reset to, so a warm worker serves trial after trial.

    A configuration holds `params`, `objective`, `threads`, and, see `SharedFiles`, `files` (the
    root), `patience_s`, `pack` and `checkpoint` (names of a file and of a folder).
    Each step reports `epoch`, `metrics`, `objective` and `is_final`, or `failure` with the reason.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Remember the configuration; building waits for the first step, where it may fail."""
        self._training: Training | None = None
        torch.cuda.empty_cache()  # of the trial before: no other process could have its memory

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve the next trial in this process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch, or report the last one again after a restart: its report may be lost."""
        started = time.perf_counter()
        try:
            result = self._advance()
            result["metrics"]["seconds"] = time.perf_counter() - started
            return result
        except SharedFilesError:
            raise  # the trial goes on from its last epoch, on another node if there is one
        except torch.AcceleratorError:
            # Nothing in this process can use its device any more, and whatever trial came next
            # would fail: raised, it ends the worker, and the trial goes on in another one. Memory
            # that does not suffice for a tensor is another error, `torch.OutOfMemoryError`.
            raise
        except Exception as error:  # noqa: BLE001 - every failure of a trial is told, none lost
            return {"failure": reason_of(error), "done": True}

    def _advance(self) -> dict[str, Any]:
        if self._training is None:
            self._training, metrics = open_training(self.config)
            if metrics:
                return self._report(metrics)
        metrics = self._training.run_epoch()
        save_training(self._training, metrics, self.config)
        return self._report(metrics)

    def _report(self, metrics: dict[str, float]) -> dict[str, Any]:
        assert self._training is not None
        objective = metrics[self._training.objective]
        is_final = self._training.is_done
        return {
            "epoch": self._training.epoch,
            "metrics": dict(metrics),
            "objective": objective,
            self._training.objective: objective,
            "is_final": is_final,
            "done": is_final,
        }


def open_training(
    config: dict[str, Any], crops: Crops | None = None
) -> tuple[Training, dict[str, float]]:
    """A training on this worker and its last epoch's metrics, none if it begins.

    One whose checkpoint cannot be read, or is another's, begins anew: epochs are lost, no trial.

    Args:
        config: See `TrialRunner`.
        crops: Of another training here on the same pack, with the same front-end.
    """
    _hide_gpus_of_others()
    torch.set_num_threads(config["threads"])
    trial_config = TrialConfig.from_params(config["params"])
    files = _files(config)
    pack = open_pack(files.fetch(config["pack"]))
    training = Training(trial_config, pack, objective=config["objective"], crops=crops)
    name = f"{config['checkpoint']}/{CHECKPOINT}"
    try:
        return training, files.read(name, lambda p: training.restore(p) if p.exists() else {})
    except CheckpointError as error:  # cut short, or of a study that had this name and is gone
        logger.warning("begins anew: %s", error)
        return training, {}


def finished_training(files: SharedFiles, state: str, pack: Pack) -> Training:
    """A training as `save_training` left it, to be judged.

    Raises:
        SharedFilesError: Its state cannot be read, or is gone.
    """
    _hide_gpus_of_others()
    try:
        return files.read(state, lambda path: Training.from_checkpoint(path, pack))
    except CheckpointError as error:
        raise SharedFilesError(
            f"{files.root} must hold {state}, the state of a finished training, and it is "
            "missing, cut short or another's: put it back, or choose another --study to "
            "search anew"
        ) from error


def save_training(training: Training, metrics: dict[str, float], config: Mapping[str, Any]) -> None:
    """Store a training's state after an epoch.

    Storage that refuses, or is full, stops no training: the next epoch brings it a newer state.
    Only the last one has to be stored, and is offered for as long as storage is waited for.

    Raises:
        SharedFilesError: The last state could not be stored.
    """
    name = f"{config['checkpoint']}/{CHECKPOINT}"
    patience_s = None if training.is_done else 0.0
    try:
        _files(config).write(name, lambda path: training.save(path, metrics), patience_s)
    except SharedFilesError as error:
        if training.is_done:
            raise
        logger.warning("epoch %d goes unsaved: %s", training.epoch, error)


def _hide_gpus_of_others() -> None:
    """On a worker to which Ray gave no GPU, have torch see none: Ray itself (2.60) hides none.

    Its own switch, RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO by way of a `runtime_env`, would double the
    time in which the first workers of a joined cluster start. CUDA reads this one on its first use.
    """
    if ray.is_initialized():
        context = ray.get_runtime_context()
        if context.worker.mode == ray.WORKER_MODE and not context.get_accelerator_ids()["GPU"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _files(config: Mapping[str, Any]) -> SharedFiles:
    return SharedFiles(config["files"], config.get("patience_s", PATIENCE_S))
