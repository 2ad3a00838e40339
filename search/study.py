"""One search from checked input to its summary: data, studies, trials, winners."""

import hashlib
import json
import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from optuna.storages import BaseStorage

from mimimi_core.pack import Pack
from mimimi_core.training import LabelFree, Objective, held_out_normals, objective_of
from search.background import BackgroundTracker, TrackingObserver
from search.conclude import conclude
from search.config import SpaceFile
from search.confirmation import confirm, find_winner
from search.costs import cost_of, excesses
from search.data import Manifest, pack_data
from search.finalists import score_finalists
from search.gpu_share import share_of_gpu
from search.launch import (
    are_hours_spent,
    cluster,
    run_trials,
    spent_hours,
    trial_resources,
)
from search.progress import Progress
from search.registry import Registry, model_name
from search.report import write_report
from search.shared_checks import probe_nodes
from search.shared_files import SharedFiles, SharedFilesError
from search.space import Space
from search.storages import check_storage, open_storage
from search.studies import StudyError, TypeStudy, complete, hours_unit
from search.tracking import Tracker, TrackingError, check
from search.uris import sqlite_uri
from search.views import COST
from search.warm_start import offers

__all__ = ["SharedFilesError", "StudyError", "TrackingError", "run_study"]

logger = logging.getLogger(__name__)

_FLUSH_S = 60.0  # how long the end of a search waits for a slow tracker
_SHARE_OF_OTHERS = 4  # at most one trial of so many begins as another type's champion
_COMPARED = 5  # best trials of a machine type that are offered side by side


def run_study(
    space_file: SpaceFile,
    manifest: Manifest,
    *,
    name: str | None,
    space_name: str,
    out: Path,
    storage_uri: str | None,
    storage_path: str | None,
    tracking_uri: str | None,
    address: str | None,
    time_budget_s: float | None,
    promote: Literal["auto", "never"],
) -> tuple[dict[str, Any], bool]:
    """Run or continue a study.

    Args:
        space_file: The whole space file, options of the command line applied.
        manifest: Clips per machine type.
        name: Of the study; None derives one that the same command finds again.
        space_name: Beginning of a derived name.
        out: Folder of all results.
        storage_uri: Of the PostgreSQL database that holds the trials; None is a journal in `out`.
        storage_path: Folder or URI of what all nodes read and write; None is `out`.
        tracking_uri: MLflow's; None is that database, else a sqlite file in `out`.
        address: Of a Ray cluster.
        time_budget_s: For the trials.
        promote: Whether winners are registered.

    Returns:
        The summary, the last line of stdout; and whether the study did what it was asked for:
        not if Ctrl-C ended it, or if a machine type has no complete trial.

    Raises:
        StudyError: The study, the cluster or the resources are not to be had.
        TrackingError: The tracking server does not answer.
        SharedFilesError: The shared storage cannot be used.
        AudioError: A clip cannot be read.
        UriError: The path of the sqlite file cannot be written as a URI.
    """
    files = SharedFiles(storage_path or out)
    files.probe()
    tracking_uri = tracking_uri or storage_uri or sqlite_uri(out / "mlflow.db")
    if storage_uri is not None:
        check_storage(storage_uri)
    check(tracking_uri)
    packs = pack_data(manifest, out)
    objectives = {t: _objective(pack, space_file.study.objective) for t, pack in packs.items()}
    _warn(packs, objectives)
    if space_file.confirmation.ensemble > 1:
        for pack in packs.values():
            _require_scale(pack)
    settings = _settings(space_file)
    name = name or f"{space_name}-{_signature(settings, packs)}"
    folder = out / name
    shared_packs = {machine_type: files.share(pack.path) for machine_type, pack in packs.items()}
    registry = Registry(tracking_uri)
    with open_storage(folder, storage_uri) as storage:
        studies = {
            machine_type: _open_study(
                storage, name, pack, objectives[machine_type], space_file, settings, registry
            )
            for machine_type, pack in packs.items()
        }
        tags = {"study": name, "space": space_name, "git_commit": _git_commit()}
        uids = {machine_type: study.uid for machine_type, study in studies.items()}
        tracker = Tracker(tracking_uri, out / "artifacts", name, tags, uids)
        logger.info("study %s in %s, seed %d", name, folder, space_file.study.seed)
        with cluster(address):
            resources = trial_resources(
                space_file.resources,
                lambda: share_of_gpu(space_file, packs, shared_packs, files),
            )
            for study in studies.values():
                study.note("resources", resources)
            probe_nodes(files, shared_packs)
            shared: dict[str, Any] = {"folder": folder, "files": files, "packs": shared_packs}
            is_over = _run(space_file, studies, shared, resources, tracker, time_budget_s)
            if is_over:
                confirm(studies, space_file, **shared, resources=resources)
            outcomes = {
                machine_type: conclude(
                    study,
                    packs[machine_type],
                    find_winner(study, space_file, folder, files, is_over),
                    folder=folder,
                    resources=resources,
                    files=files,
                    shared_pack=shared_packs[machine_type],
                    tracker=tracker,
                    registry=registry,
                    tags=tags,
                    mode=promote,
                    promotion=space_file.promotion,
                    is_over=is_over,
                )
                for machine_type, study in studies.items()
            }
            if is_over and space_file.confirmation.test == "all":
                for machine_type, study in studies.items():
                    score_finalists(
                        study,
                        packs[machine_type],
                        space_file,
                        folder,
                        resources,
                        files,
                        shared_packs[machine_type],
                    )
        report = write_report(folder)
        for machine_type, outcome in outcomes.items():
            tracker.log_files(tracker.parent_run(machine_type), report, "report")
            numbers = {k: v for k, v in outcome.items() if isinstance(v, (int, float))}
            tracker.log_parent(machine_type, numbers, step=outcome["trials"])
            if not is_over:
                tracker.finish(machine_type, "KILLED")
            else:
                tracker.finish(machine_type, "FINISHED" if outcome["complete"] else "FAILED")
        _say_what_is_left(studies, space_file, resources, is_over)
        _say_where_to_look(tracker, studies, report)
    summary = {"study": name, "machine_types": outcomes, "tracking_uri": tracking_uri}
    return summary, is_over and all(outcome["complete"] for outcome in outcomes.values())


def _open_study(
    storage: BaseStorage,
    name: str,
    pack: Pack,
    objective: Objective,
    space_file: SpaceFile,
    settings: Mapping[str, Any],
    registry: Registry,
) -> TypeStudy:
    """The study of one machine type, new or continued."""
    options, n_ids = space_file.study, len(pack.machine_ids)
    cost, limits = options.cost, space_file.constraints.limits
    study = TypeStudy(
        storage,
        name=name,
        machine_type=pack.machine_type,
        objective=objective,
        space=Space(space_file.parameters),
        sampler=space_file.sampler,
        seed=options.seed,
        identity={**settings, "data": pack.data_hash},
        offers=lambda: (
            offers(registry, pack.machine_type, options.trials // _SHARE_OF_OTHERS)
            if space_file.sampler.warm_start
            else ()
        ),
        excesses=lambda params: excesses(limits, params, n_ids),
        cost=None if cost is None else lambda params: cost_of(cost, params, n_ids),
        lag=options.parallel if options.deterministic else None,
    )
    if cost is not None:
        study.note(COST, cost)
    return study


def _run(
    space_file: SpaceFile,
    studies: Mapping[str, TypeStudy],
    shared: Mapping[str, Any],
    resources: Mapping[str, float],
    tracker: Tracker,
    time_budget_s: float | None,
) -> bool:
    """Run the trials while a thread keeps MLflow up to date; False if Ctrl-C ended them."""
    background = BackgroundTracker(tracker)
    for machine_type, study in studies.items():
        for trial in study.trials():  # whatever an earlier run could not write is written now
            background.submit_trial(machine_type, trial)
    progress = Progress(
        studies,
        space_file.study.trials,
        space_file.study.epochs,
        lambda: _spending(studies, space_file.study.hours, resources),
    )
    flush_s = _FLUSH_S
    try:
        with progress:
            is_over = run_trials(
                studies,
                space_file,
                **shared,
                resources=resources,
                time_budget_s=time_budget_s,
                observers=(progress, TrackingObserver(background, studies)),
            )
    except (KeyboardInterrupt, SystemExit):
        flush_s = 0.0
        raise
    finally:
        left = background.close(flush_s)
    if left:
        logger.warning("%d runs are not up to date in MLflow: repeat the command later", left)
    return is_over


def _spending(
    studies: Mapping[str, TypeStudy], hours: float | None, resources: Mapping[str, float]
) -> str:
    """Such as `0.52 of 8 GPU-hours spent`."""
    held = [spent_hours(study, resources) for study in studies.values()]
    spent = sum(sum(of_kind.values()) for of_kind in held)
    limit = "" if hours is None else f" of {hours:g}"
    return f"{spent:.2f}{limit} {hours_unit(set().union(*held), resources)} spent"


def _objective(pack: Pack, wanted: Literal["auto", LabelFree]) -> Objective:
    return objective_of(pack) if wanted == "auto" else wanted


def _settings(space_file: SpaceFile) -> dict[str, Any]:
    """What must not change while a study goes on; how much is spent on it may."""
    settings = space_file.model_dump(
        mode="json", exclude={"resources", "confirmation", "promotion"}
    )
    # joint adds a machine type, and changes none
    for other in ("trials", "hours", "hang_minutes", "joint"):
        del settings["study"][other]
    if not space_file.study.deterministic:
        del settings["study"]["parallel"]
    return settings


def _signature(settings: Mapping[str, Any], packs: Mapping[str, Pack]) -> str:
    data = {machine_type: pack.data_hash for machine_type, pack in packs.items()}
    canonical = json.dumps([settings, data], sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=4).hexdigest()


def _git_commit() -> str:
    """Commit of the code, "-dirty" if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def _warn(packs: Mapping[str, Pack], objectives: Mapping[str, str]) -> None:
    """Say what cannot be computed.

    Raises:
        StudyError: There is nothing at all to select a model by.
    """
    for machine_type, pack in packs.items():
        if objectives[machine_type] != "val_auc":
            if len(np.unique(pack.id_index[held_out_normals(pack)])) < 2:
                raise StudyError(
                    f"{machine_type}: there is nothing to select a model by: no machine id has "
                    "labelled normal and anomalous clips, and fewer than two ids have normal clips "
                    "to hold out (10 normal clips of an id are enough)"
                )
            logger.warning(
                "%s: NO anomalous clip is used to validate on, so the search maximises %s, a "
                "figure without labels. Published studies found no such proxy that ranks models "
                "as true anomalies do (the report says how well this one did where that could be "
                "checked): collect a few labelled anomalies",
                machine_type,
                objectives[machine_type],
            )
        for split in ("val", "test"):
            without = [
                machine_id
                for index, machine_id in enumerate(pack.machine_ids)
                if machine_id in pack.untrained_ids
                or len(set(pack.labels[(pack.id_index == index) & (pack.splits == split)])) < 2
            ]
            if without:
                logger.warning(
                    "%s: no %s AUC for %s (no normal, anomalous or training clips): left out of "
                    "the mean",
                    machine_type,
                    split,
                    ", ".join(without),
                )


def _require_scale(pack: Pack) -> None:
    """Refuse an ensemble whose members could not be put on one scale.

    Raises:
        StudyError: No machine id has two held-out normal clips.
    """
    n_clips = np.bincount(pack.id_index[held_out_normals(pack)], minlength=len(pack.machine_ids))
    if n_clips.max() < 2:
        raise StudyError(
            f"{pack.machine_type}: confirmation.ensemble needs a machine id with two normal clips "
            f"held out of training, got {', '.join(map(str, n_clips))} of the ids: add normal "
            "recordings (10 of an id are enough), or set it to 1"
        )


def _say_what_is_left(
    studies: Mapping[str, TypeStudy],
    space_file: SpaceFile,
    resources: Mapping[str, float],
    is_over: bool,
) -> None:
    options = space_file.study
    left = sum(s.n_left(options.trials) + s.count("paused") for s in studies.values())
    if left and are_hours_spent(studies, options.hours, resources):
        logger.warning(
            "%d trials are unfinished, for the %g hours of study.hours are spent: raise it in the "
            "space file and repeat the command to continue",
            left,
            options.hours,
        )
    elif left:
        logger.warning("%d trials are unfinished: repeat the command to continue", left)
    elif not is_over:
        logger.warning("the winner is not chosen yet: repeat the command to continue")


def _say_where_to_look(tracker: Tracker, studies: Mapping[str, TypeStudy], report: Path) -> None:
    best_runs = {}
    for machine_type, study in studies.items():
        best = complete(study.trials())[:_COMPARED]
        runs = [tracker.trial_run(machine_type, trial.number) for trial in best]
        best_runs[machine_type] = [run for run in runs if run]
    try:
        lines = tracker.links(best_runs, [model_name(machine_type) for machine_type in studies])
    except TrackingError as error:
        lines = [f"no links, the tracker failed: {error}"]
    lines.insert(0, str(report / "report.html"))
    logger.info("look at it:\n  %s", "\n  ".join(lines))
