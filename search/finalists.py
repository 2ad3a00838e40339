"""Tests every finalist of a study, where the systems themselves are compared and not only searched.

The winner is chosen, and the choice is stored, before any finalist meets the test: see
`confirmation.test` of a space file. What is noted in Optuna's storage becomes the report's table.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimimi_core import table2
from mimimi_core.config import TrialConfig
from mimimi_core.ensemble import EnsembleError, fit_scale
from mimimi_core.metrics import AucReport, auc_report
from mimimi_core.pack import Pack, open_pack
from mimimi_core.training import held_out_normals
from search.config import SpaceFile
from search.confirmation import confirmed
from search.lost_workers import as_task, scored
from search.machines import threads_of
from search.shared_files import SharedFiles
from search.space import all_params
from search.studies import FINALISTS, TypeStudy
from search.trainable import finished_training

logger = logging.getLogger(__name__)


def score_finalists(
    study: TypeStudy,
    pack: Pack,
    space: SpaceFile,
    folder: Path,
    resources: Mapping[str, float],
    files: SharedFiles,
    shared_pack: str,
) -> None:
    """Score the test clips with the fresh seeds of every finalist, and with ensembles of them.

    A finalist's figure is the mean over its fresh seeds: no training that the search saw is
    among them, so none flatters itself. Repeating it for the same finalists scores nothing.

    Args:
        study: Of the machine type; its winner is noted.
        pack: Its clips.
        space: How many finalists and seeds.
        folder: Of the whole study.
        resources: Of one training.
        files: Of all nodes.
        shared_pack: What `files` calls the pack.

    Raises:
        StepLost: A state cannot be read, or a worker that scores died or lost its device.
    """
    trained = confirmed(study, space, folder, files)
    tested = {str(number): names for number, names in trained.items()}
    noted = study.noted(FINALISTS)
    complete = study.count("complete")
    if not trained:
        return
    if noted and noted["tested"] == tested:
        if noted.get("complete") != complete:  # the search went on and found none better
            study.note(FINALISTS, {**noted, "complete": complete})
        return
    task = as_task(_nll, resources)
    threads = threads_of(resources)
    waiting = {
        number: [task.remote(files.root, name, shared_pack, threads) for name in names]
        for number, names in trained.items()
    }
    logger.info("%s: %d finalists meet the test clips", study.machine_type, len(trained))
    # Of each seed (n, C).
    nll = {number: scored(refs, study.machine_type) for number, refs in waiting.items()}
    systems = [
        {"number": number, "system": system_of(study, number), **_figures(seeds, pack)}
        for number, seeds in nll.items()
    ]
    for name, of_names in table2.ENSEMBLES.items():
        members = _members(systems, of_names)
        if members is not None:
            try:
                seeds = _combine([nll[number] for number in members], pack)
            except EnsembleError as error:
                logger.warning("%s: no %s: %s", study.machine_type, name, error)
            else:
                systems.append({"number": None, "system": name, **_figures(seeds, pack)})
    study.note(FINALISTS, {"tested": tested, "complete": complete, "systems": systems})


def system_of(study: TypeStudy, number: int) -> str | None:
    """Name of a trial's system in the paper's table; None if it is not of it."""
    config = TrialConfig.from_params(all_params(study.trial(number)))
    return next((row.name for row in table2.SYSTEMS if row.describes(config)), None)


def _members(systems: Sequence[Mapping[str, Any]], of_names: Sequence[str]) -> list[int] | None:
    """Numbers of an ensemble's trials, the first of each system; None where one has none."""
    numbers: dict[str, int] = {}
    for system in systems:
        numbers.setdefault(system["system"], system["number"])
    members = [numbers[name] for name in of_names if name in numbers]
    return members if len(members) == len(of_names) else None


def _nll(root: str, state: str, pack: str, threads: int) -> np.ndarray:
    """On a worker: scores of all clips of a pack under every id, `(n, C)`; zeros for train."""
    torch.set_num_threads(threads)
    files = SharedFiles(root)
    training = finished_training(files, state, open_pack(files.fetch(pack)))
    clips = np.flatnonzero(training.pack.splits != "train")
    nll = np.zeros((len(training.pack.splits), len(training.pack.machine_ids)))
    nll[clips] = training.scores(clips).nll
    return nll


def _combine(members: Sequence[Sequence[np.ndarray]], pack: Pack) -> list[np.ndarray]:
    """Mean of the members' z-scores, for as many seeds as all of them have."""
    normals = held_out_normals(pack)
    own, n_ids = pack.id_index[normals], len(pack.machine_ids)
    together = []
    for of_seed in zip(*members, strict=False):
        scales = [fit_scale(nll[normals, own], own, n_ids) for nll in of_seed]
        z = [scale.z(nll) for scale, nll in zip(scales, of_seed, strict=True)]
        together.append(np.mean(z, axis=0))
    return together


def _figures(nll: Sequence[np.ndarray], pack: Pack) -> dict[str, Any]:
    """What is noted of a system: `test`; `dev`, val and test, as in published tables."""
    scores = np.stack([seed[np.arange(len(seed)), pack.id_index] for seed in nll])
    return {
        name: _summary(scores, pack, clips)
        for name, splits in (("test", ["test"]), ("dev", ["val", "test"]))
        for clips in (np.flatnonzero(np.isin(pack.splits, splits)),)
    }


def _summary(scores: np.ndarray, pack: Pack, clips: np.ndarray) -> dict[str, Any]:
    """Figures of several seeds on some clips: means, the interval over clips, each seed's own.

    Args:
        scores: float `(S, n)` of all clips of the pack.
        pack: The clips.
        clips: Those that count, as indices.
    """
    labels, id_index = pack.labels[clips], pack.id_index[clips]

    def report(of: np.ndarray, **options: int) -> AucReport:
        untrained = pack.untrained_ids
        return auc_report(of, labels, id_index, pack.machine_ids, untrained=untrained, **options)

    together = report(scores[:, clips])
    alone = [report(one, n_bootstrap=1) for one in scores[:, clips]]
    return {
        "auc": together.auc,
        "ci": together.ci,
        "pauc": together.pauc,
        "pauc_ci": together.pauc_ci,
        "worst_auc": together.worst_auc,
        "n_clips": together.n_clips,
        "without_auc": list(together.without_auc),
        "auc_of_seeds": [one.auc for one in alone],
        "pauc_of_seeds": [one.pauc for one in alone],
    }
