"""Chooses the winner by fresh seeds: the best of many noisy trials overstates itself.

The best trials are trained again in full with seeds that the search never saw, and the highest mean
wins. What every seed reached is noted in Optuna's storage, so a killed confirmation continues.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from optuna.trial import FrozenTrial

from search.config import SpaceFile
from search.failures import longest_silence_s, reason_of_lost_task
from search.fresh_seeds import gpu_of, seeds_at_once, train_seeds
from search.launch import checkpoint_name, worker_config
from search.lost_workers import StepLost, as_task, refusal_of
from search.progress import time_left
from search.shared_files import SharedFiles
from search.space import all_params
from search.studies import EPOCH, TypeStudy, complete
from search.trainable import CHECKPOINT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The trial that is to be tested, and what is known of it from the validation clips."""

    members: tuple[int, ...]  # trials whose networks judge together, the winner first
    checkpoints: tuple[str, ...]  # of those, see `SharedFiles`
    objectives: tuple[float, ...]  # of its fresh seeds; none if it stands without confirmation

    @property
    def number(self) -> int:
        """The trial that won."""
        return self.members[0]

    @property
    def is_confirmed(self) -> bool:
        """Whether its networks are those of fresh seeds, and not those that the search saw."""
        return bool(self.objectives)

    @property
    def mean(self) -> float | None:
        """The estimate that does not flatter; None without confirmation."""
        return float(np.mean(self.objectives)) if self.is_confirmed else None


def confirm(
    studies: Mapping[str, TypeStudy],
    space: SpaceFile,
    *,
    folder: Path,
    packs: Mapping[str, str],
    resources: Mapping[str, float],
    files: SharedFiles,
) -> None:
    """Train every finalist of every machine type with fresh seeds, all slots of the cluster busy.

    Args:
        studies: One per machine type, their trials ended.
        space: How many finalists and seeds, and the epochs.
        folder: Of the whole study, on this machine.
        packs: Pack of each machine type, as `files` names it.
        resources: Of one training; seeds that are fused share a task, see `seeds_at_once`.
        files: Of all nodes.

    Raises:
        StepLost: Storage refuses; what was confirmed is noted.
    """
    running = {}
    for machine_type, study in studies.items():
        for number in finalists(study.trials(), space.confirmation.top):
            missing = [
                index
                for index in range(space.confirmation.seeds)
                if study.noted(_key(number, index)) is None
            ]
            params = all_params(study.trial(number))
            n = seeds_at_once(space.confirmation.fused, resources["gpu"], params)
            for first in range(0, len(missing), n):
                indexes = missing[first : first + n]
                configs = [
                    worker_config(
                        study,
                        number,
                        space,
                        resources,
                        files=files,
                        pack=packs[machine_type],
                        checkpoint=_name(files, folder, machine_type, number, index),
                        seed=study.train_seed(number, index),
                    )
                    for index in indexes
                ]
                held = {**resources, "gpu": gpu_of(len(indexes), resources["gpu"])}
                hang_s = _longest_silence_s(study.trial(number), space)
                task = as_task(train_seeds, held)
                waiting = task.remote(configs, hang_s=hang_s, gpu=resources["gpu"])
                running[waiting] = (study, number, indexes)
    started, n_done = time.monotonic(), 0
    n_all = sum(len(indexes) for *_, indexes in running.values())
    if n_all:
        logger.info("confirming the best trials: %d trainings with fresh seeds", n_all)
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        study, number, indexes = running.pop(done)
        try:
            notes = ray.get(done)
        except ray.exceptions.RayError as error:
            if refusal := refusal_of(error):  # no failure of the finalist
                raise StepLost(
                    f"{study.machine_type}: trial {number} could not be confirmed: {refusal}; "
                    "repeat the command to continue: the trials are recorded"
                ) from None
            notes = [{"failure": reason_of_lost_task(error)} for _ in indexes]
        for index, note in zip(indexes, notes, strict=True):
            stamps = {"timestamp_ms": int(time.time() * 1000), **resources}
            study.note(_key(number, index), note | stamps)
            outcome = note.get("failure") or f"{note['objective']:.3f}"
            n_done += 1
            logger.info(
                "%s trial %d confirmed with fresh seed %d of %d: %s (%d of %d trainings, %s left)",
                study.machine_type,
                number,
                index + 1,
                space.confirmation.seeds,
                outcome,
                n_done,
                n_all,
                time_left(started, n_done, n_all - n_done),
            )


def find_winner(
    study: TypeStudy,
    space: SpaceFile,
    folder: Path,
    files: SharedFiles | None = None,
    is_over: bool = True,
) -> Winner | None:
    """The finalist with the highest mean; without confirmation, the best trial itself.

    The network that goes on is that of the first fresh seed: choosing among seeds would be
    selection again. With `confirmation.ensemble`, so do those of the next best finalists. A
    finalist that fails with a fresh seed is no winner. While the study is not over the confirmation
    is yet to come, and that none is confirmed is no news.
    """
    files = files or SharedFiles(folder.parent)
    trained = confirmed(study, space, folder, files)
    if trained:
        values = {
            number: [study.noted(_key(number, i))["objective"] for i in range(len(checkpoints))]
            for number, checkpoints in trained.items()
        }
        members = ranked(values)[: space.confirmation.ensemble]
        return Winner(
            members=tuple(members),
            checkpoints=tuple(trained[number][0] for number in members),
            objectives=tuple(values[members[0]]),
        )
    best = study.best()
    if best is None:
        return None
    if space.confirmation.top and is_over:
        logger.warning("%s: no finalist is confirmed, the best trial stands", study.machine_type)
    state = f"{checkpoint_name(files, folder, study.machine_type, best.number)}/{CHECKPOINT}"
    return Winner(members=(best.number,), checkpoints=(state,), objectives=())


def confirmed(
    study: TypeStudy, space: SpaceFile, folder: Path, files: SharedFiles
) -> dict[int, list[str]]:
    """Finalists whose fresh seeds all got to their end, with the checkpoint of each seed."""
    found = {}
    for number in finalists(study.trials(), space.confirmation.top):
        notes = [study.noted(_key(number, i)) for i in range(space.confirmation.seeds)]
        if all(note and "objective" in note for note in notes):
            found[number] = [
                f"{_name(files, folder, study.machine_type, number, i)}/{CHECKPOINT}"
                for i in range(space.confirmation.seeds)
            ]
    return found


def finalists(trials: Sequence[FrozenTrial], k: int) -> list[int]:
    """Numbers of the k best complete trials, best first; of equals, the earlier."""
    return [trial.number for trial in complete(trials)[:k]]


def ranked(values: Mapping[int, Sequence[float]]) -> list[int]:
    """Finalists by the mean of their fresh seeds, the highest first; of equals, the earlier.

    Args:
        values: Number of a finalist -> objective of each of its seeds, at least one.
    """
    return sorted(values, key=lambda number: (-float(np.mean(values[number])), number))


def _key(number: int, index: int) -> str:
    return f"confirmation/{number}/{index}"


def _longest_silence_s(trial: FrozenTrial, space: SpaceFile) -> float:
    """How long an epoch with these parameters may take, judged by those of the trial itself."""
    told = [values for name, values in trial.user_attrs.items() if name.startswith(EPOCH)]
    longest = max((values.get("seconds", 0.0) for values in told), default=0.0)
    return longest_silence_s(space.study.hang_minutes, longest)


def _name(files: SharedFiles, folder: Path, machine_type: str, number: int, index: int) -> str:
    return files.name(folder.name, "confirmation", machine_type, f"{number:05d}-{index}")
