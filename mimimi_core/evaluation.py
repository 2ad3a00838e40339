"""Judges a trained network on the clips that were kept for it, and makes a detector of it."""

from dataclasses import dataclass

from mimimi_core.detector import Detector
from mimimi_core.metrics import AucReport
from mimimi_core.scoring import ClipScores, Threshold, fit_threshold
from mimimi_core.training import Training, held_out_normals


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """AUCs per split, the scores behind the test's, and a threshold per machine id."""

    val: AucReport
    test: AucReport
    dev: AucReport  # val and test together: only to compare with published tables
    test_scores: ClipScores
    thresholds: dict[str, Threshold | None]  # None where an id has too few held-out normals


def evaluate(training: Training) -> Evaluation:
    """Open the test; thresholds come from normals of `holdout` and `val` alone."""
    pack = training.pack
    normals = training.scores(held_out_normals(pack))
    return Evaluation(
        val=training.auc_report("val"),
        test=training.auc_report("test"),
        dev=training.auc_report("val", "test"),
        test_scores=training.scores(pack.select("test")),
        thresholds={
            machine_id: fit_threshold(normals.scores[normals.id_index == index])
            for index, machine_id in enumerate(pack.machine_ids)
        },
    )


def build_detector(training: Training, evaluation: Evaluation) -> Detector:
    """The trained network with the thresholds of its evaluation."""
    return Detector(
        config=training.config,
        machine_type=training.pack.machine_type,
        machine_ids=training.pack.machine_ids,
        thresholds=evaluation.thresholds,
        network=training.network,
    )


def describe(report: AucReport, name: str) -> list[str]:
    """Lines for people: the mean with its interval, then a line per machine id."""
    if report.auc is None or report.ci is None:
        return [f"{name}: none, no machine id has both normal and anomalous clips there"]
    lines = [
        f"{name} {report.auc:.3f} [{report.ci[0]:.3f}, {report.ci[1]:.3f}], "
        f"pAUC {report.pauc:.3f}, worst id {report.worst_auc:.3f} ({report.n_clips} clips)"
    ]
    for x in report.per_id:
        clips = f"{x.n_normal} normal, {x.n_anomaly} anomalous"
        if x.auc is None or x.ci is None:
            lines.append(f"  {x.machine_id}  no AUC, left out of the mean ({clips})")
        else:
            lines.append(
                f"  {x.machine_id}  AUC {x.auc:.3f} [{x.ci[0]:.3f}, {x.ci[1]:.3f}]  "
                f"pAUC {x.pauc:.3f}  ({clips})"
            )
    return lines
