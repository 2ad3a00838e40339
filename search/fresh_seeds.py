"""Trains a finalist with fresh seeds: which of them share a task, and what the task does.

Seeds that share one are trained as one (`mimimi_core.fused`), each with its own checkpoint, ending
and note. A crash of their common steps, and a worker that is lost, are met by all of them.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from mimimi_core.config import TrialConfig
from mimimi_core.fused import can_fuse, run_epoch
from mimimi_core.training import Training
from search.failures import reason_of
from search.hangs import alarm
from search.searcher import Config
from search.shared_files import SharedFilesError
from search.space import Params
from search.trainable import open_training, save_training


def seeds_at_once(mode: bool | Literal["auto"], gpu: float, params: Params) -> int:
    """How many fresh seeds of a finalist one task trains, fused if there are several.

    Args:
        mode: `confirmation.fused`; "auto" is where a training has a GPU, for a CPU gains nothing.
        gpu: Of one training; the seeds take as much of one GPU as they would in tasks of their own.
        params: Of the finalist; not every system can be fused.
    """
    is_wanted = gpu > 0 if mode == "auto" else mode
    if not is_wanted or not can_fuse(TrialConfig.from_params(params)):
        return 1
    return sys.maxsize if gpu == 0 or gpu >= 1 else int(1 / gpu + 1e-9)


def gpu_of(n_seeds: int, gpu: float) -> float:
    """What a task of several seeds asks Ray for: of shares several, of whole GPUs no more."""
    return min(1.0, n_seeds * gpu) if gpu < 1 else gpu


def train_seeds(configs: Sequence[Config], hang_s: float, gpu: float) -> list[dict[str, Any]]:
    """On a worker: whole trainings of one finalist, continued from checkpoints if there are any.

    Args:
        configs: Of each, see `TrialRunner`.
        hang_s: How long an epoch of one may take, by itself.
        gpu: Of one training, by itself.

    Returns:
        What is to be noted of each: `objective`, `metrics` and `seconds`, its share of the task's
        in such measure that all together cost what the task held, or `failure` with the reason.

    Raises:
        SharedFilesError: Checkpoints could not be read, or the last one not be stored.
        AcceleratorError: The device is of no use to this process any more, see `TrialRunner`.
    """
    started = time.perf_counter()
    trainings: dict[int, Training] = {}
    metrics: dict[int, dict[str, float]] = {}
    failures: dict[int, str] = {}
    crops = None
    for i, config in enumerate(configs):
        with _failures_of([i], failures):
            trainings[i], metrics[i] = open_training(config, crops)
            crops = trainings[i].crops
    while left := [i for i, x in trainings.items() if i not in failures and not x.is_done]:
        behind = min(trainings[i].epoch for i in left)  # a killed worker may have saved a part
        group = [i for i in left if trainings[i].epoch == behind]
        with _failures_of(group, failures):
            with alarm(len(group) * hang_s):
                outcomes = run_epoch([trainings[i] for i in group])
            for i, outcome in zip(group, outcomes, strict=True):
                with _failures_of([i], failures):
                    if isinstance(outcome, Exception):
                        raise outcome
                    metrics[i] = outcome
                    save_training(trainings[i], outcome, configs[i])
    held = gpu_of(len(configs), gpu) / gpu if gpu else 1.0
    seconds = (time.perf_counter() - started) * held / len(configs)
    notes: list[dict[str, Any]] = []
    for i in range(len(configs)):
        if i in failures:
            notes.append({"failure": failures[i]})
        else:
            objective = metrics[i][trainings[i].objective]
            notes.append({"objective": objective, "metrics": metrics[i], "seconds": seconds})
    return notes


@contextmanager
def _failures_of(indexes: Sequence[int], failures: dict[int, str]) -> Iterator[None]:
    """Note why these fail, as for every trial; storage or a device that breaks is no fault."""
    try:
        yield
    except (SharedFilesError, torch.AcceleratorError):
        raise
    except Exception as error:  # noqa: BLE001 - told
        failures |= dict.fromkeys(indexes, reason_of(error))
