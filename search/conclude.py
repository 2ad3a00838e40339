"""Ends a study of a machine type: tests its winner once, registers it, lets it challenge."""

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from mimimi_core.detector import SETTINGS, Detector
from mimimi_core.ensemble import EnsembleError
from mimimi_core.evaluate import write_evaluation
from mimimi_core.evaluation import Evaluation, build_detector, describe, evaluate
from mimimi_core.figure_file import write_figure
from mimimi_core.pack import Pack, open_pack
from mimimi_core.winner_figures import winner_figures
from search.champions import Candidate, Decision, challenge, compare_with_champion
from search.config import PromotionConfig
from search.confirmation import Winner
from search.lost_workers import as_task, scored
from search.machines import threads_of
from search.registry import Registry
from search.shared_files import SharedFiles
from search.studies import TypeStudy
from search.tracking import Tracker
from search.trainable import finished_training

logger = logging.getLogger(__name__)

Mode = Literal["auto", "never"]
_FINDINGS = ("best_val_auc", "confirmed_val_auc", "test_auc", "test_auc_ci", "champion_version")


def conclude(
    study: TypeStudy,
    pack: Pack,
    winner: Winner | None,
    *,
    folder: Path,
    resources: Mapping[str, float],
    files: SharedFiles,
    shared_pack: str,
    tracker: Tracker,
    registry: Registry,
    tags: Mapping[str, str],
    mode: Mode,
    promotion: PromotionConfig,
    is_over: bool = True,
) -> dict[str, Any]:
    """Evaluate the winner of a machine type and promote it if it deserves that.

    The winner's networks are tested once: repeating the command finds the outcome in the storage,
    and scores them again only for a registry that has no version of them. The same trial with a
    fresh seed, where it had won without, is another network.

    Args:
        study: Of the machine type.
        pack: Its clips.
        winner: Whom the validation clips chose; None if no trial was completed.
        folder: Of the whole study; the winner's detector is saved below it.
        resources: Of one trial, for the evaluation.
        files: Of all nodes.
        shared_pack: What `files` calls the pack.
        tracker: Gets figures and final figures of the parent run.
        registry: Holds the champions.
        tags: Provenance for the registered model.
        mode: "never" registers nothing.
        promotion: When the winner replaces the champion.
        is_over: False keeps the test clips closed: the study was interrupted and will go on.

    Returns:
        The machine type's entry in the last line of stdout; None is what cannot be computed.

    Raises:
        StepLost: The winner's state cannot be read, or the worker that scores died or lost its
            device.
    """
    counts = {
        "trials": len(study.trials()),
        "complete": study.count("complete"),
        "pruned": study.count("pruned"),
        "failed": study.count("failed"),
        "infeasible": study.n_infeasible(),
    }
    if winner is None:
        logger.error("%s: no trial was completed, so there is no winner", study.machine_type)
        return counts | dict.fromkeys(_FINDINGS) | {"promoted": False}
    best = {"best_val_auc": _best_val_auc(study)}
    confirmed = {"confirmed_val_auc": winner.mean if study.objective == "val_auc" else None}
    noted = study.noted("outcome")
    if (
        noted
        and _is_of(noted, winner)
        and (mode == "never" or _is_registered(registry, study, noted, tags))
    ):
        champion = {"champion_version": _champion(registry, study)}  # may have changed since
        return {**counts, **best, **noted["findings"], **confirmed, **champion}
    if not is_over:
        return counts | dict.fromkeys(_FINDINGS) | best | {"promoted": False}

    model_folder = folder / "models" / study.machine_type
    evaluation_folder = folder / "evaluation" / study.machine_type
    task = as_task(_evaluate, resources)
    evaluation, model, figures = scored(
        task.remote(files.root, winner.checkpoints, shared_pack, threads_of(resources)),
        study.machine_type,
    )
    chosen, judges = winner.members, winner.members[: len(evaluation.kinds)]
    if judges != chosen:
        logger.warning(
            "%s: trial %d judges alone: an ensemble with trials %s has no scale, as one of their "
            "networks scores all held-out normal clips alike",
            study.machine_type,
            winner.number,
            ", ".join(map(str, chosen[1:])),
        )
        winner = dataclasses.replace(winner, members=judges, checkpoints=winner.checkpoints[:1])
    _write(model, model_folder)
    _write(figures, evaluation_folder)
    _tell(study, winner, evaluation)
    run_id = tracker.parent_run(study.machine_type)
    # A folder for each winner: artifacts are only ever added, and not all winners have the same.
    of = "-".join(map(str, winner.members))
    tracker.log_files(run_id, evaluation_folder, f"evaluation/trial-{of}")
    version, decision = None, Decision(promoted=False, reason="--promote never")
    if mode == "auto":
        version = _register(study, pack, winner, evaluation, model_folder, tracker, registry, tags)
        detector = Detector.load(model_folder, torch.device("cpu"))  # a worker has scored with it
        candidate = Candidate(detector, pack, evaluation.test_scores)
        decision = challenge(
            registry,
            study.machine_type,
            version,
            lambda rival: compare_with_champion(registry, rival, candidate, promotion),
        )
        logger.info("%s: version %d %s", study.machine_type, version, decision)
    tracker.log_parent(study.machine_type, {}, tags=decision.tags())
    findings = {
        "test_auc": evaluation.test.auc,
        "test_auc_ci": evaluation.test.ci,
        "champion_version": _champion(registry, study),
        "promoted": decision.promoted,
    }
    study.note(
        "outcome",
        {
            "winner": winner.number,
            "chosen": list(chosen),
            "members": list(judges),
            "is_confirmed": winner.is_confirmed,
            "version": version,
            "findings": findings,
            "test_per_id": [dataclasses.asdict(x) for x in evaluation.test.per_id],
        },
    )
    return counts | best | confirmed | findings


def _is_of(noted: Mapping[str, Any], winner: Winner) -> bool:
    """Whether an outcome is that of the networks of this winner, whichever of them could judge."""
    chosen = noted.get("chosen", noted.get("members", [noted["winner"]]))
    is_confirmed = noted.get("is_confirmed", winner.is_confirmed)  # earlier versions did not say
    return bool(chosen == list(winner.members) and is_confirmed == winner.is_confirmed)


def _is_registered(
    registry: Registry, study: TypeStudy, noted: Mapping[str, Any], tags: Mapping[str, str]
) -> bool:
    """Whether this registry, which may be new, has the version of an outcome."""
    return noted["version"] is not None and any(
        (v.number, v.tags.get("study")) == (noted["version"], tags["study"])
        for v in registry.versions(study.machine_type)
    )


def _register(
    study: TypeStudy,
    pack: Pack,
    winner: Winner,
    evaluation: Evaluation,
    model_folder: Path,
    tracker: Tracker,
    registry: Registry,
    tags: Mapping[str, str],
) -> int:
    # Written once more, at no cost where it is up to date: the background writer may have given up.
    tracker.log_trial(study.machine_type, study.trial(winner.number))
    run_id = tracker.trial_run(study.machine_type, winner.number)
    assert run_id is not None
    return registry.register(
        study.machine_type,
        model_folder,
        run_id,
        tags={
            **tags,
            "trial": ", ".join(map(str, winner.members)),
            "data_hash": pack.data_hash,
            **{f"{name}_auc": str(getattr(evaluation, name)) for name in ("val", "test")},
            "dev_auc": f"{evaluation.dev}, val and test together, for comparison only",
        },
        metrics={"test_auc": evaluation.test.auc, "test_pauc": evaluation.test.pauc},
    )


def _champion(registry: Registry, study: TypeStudy) -> int | None:
    found = registry.champion(study.machine_type)
    return found[0] if found else None


def _evaluate(
    root: str, states: Sequence[str], shared_pack: str, threads: int
) -> tuple[Evaluation, dict[str, bytes], dict[str, bytes]]:
    """On a worker: restore the winner and who judges with it, score them; files of both.

    Where they have no common scale the winner judges alone, as the evaluation's `kinds` tells.
    Figures are drawn here: matplotlib cannot use what Ray makes of them.
    """
    torch.set_num_threads(threads)
    files = SharedFiles(root)
    pack = open_pack(files.fetch(shared_pack))
    trainings = [finished_training(files, state, pack) for state in states]
    try:
        detector = build_detector(trainings)
    except EnsembleError:  # its scores are known only after the training
        detector = build_detector(trainings[:1])
    evaluation = evaluate(detector, pack)
    with tempfile.TemporaryDirectory() as scratch:
        model, figures = Path(scratch, "model"), Path(scratch, "figures")
        detector.save(model)
        write_evaluation(evaluation, figures)
        for name, figure in winner_figures(detector, pack, evaluation.test_scores).items():
            write_figure(figure, figures / f"{name}.png")
        return evaluation, _read(model), _read(figures)


def _read(folder: Path) -> dict[str, bytes]:
    """Content of every file by its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    """Make these whole files all that the folder holds.

    A detector's settings go first and come last, see `Detector.save`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in files:  # of an earlier winner, or half-written
            path.unlink()
    for name in sorted(files, key=lambda name: name == SETTINGS):
        temporary = folder / f".{name}.tmp"
        temporary.write_bytes(files[name])
        temporary.replace(folder / name)


def _best_val_auc(study: TypeStudy) -> float | None:
    """What the search itself saw at its best, which flatters; None with another objective."""
    best = study.best()
    return best.value if best and study.objective == "val_auc" else None


def _tell(study: TypeStudy, winner: Winner, evaluation: Evaluation) -> None:
    seeds = ", ".join(f"{value:.3f}" for value in winner.objectives)
    judged = "not confirmed by fresh seeds"
    if winner.mean is not None:
        judged = f"{study.objective} {winner.mean:.3f} (seeds: {seeds})"
    others = winner.members[1:]
    lines = [
        f"{study.machine_type}: winner is trial {winner.number}, {judged}"
        + (f"; trials {', '.join(map(str, others))} judge with it" if others else "")
    ]
    lines += describe(evaluation.val, "val_auc") + describe(evaluation.test, "test_auc")
    for about in evaluation.val.per_id:
        if not about.is_trained:
            lines.append(f"{about.machine_id}: no threshold: no clip of it trained the model")
        elif evaluation.thresholds[about.machine_id] is None:
            lines.append(
                f"{about.machine_id}: no threshold: fewer than two held-out normal clips with "
                "different scores"
            )
    logger.info("%s", "\n  ".join(lines))
