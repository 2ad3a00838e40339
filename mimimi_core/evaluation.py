"""Judges a trained network on the clips that were kept for it, and makes a detector of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mimimi_core.crops import Crops
from mimimi_core.detector import Detector, DetectorError
from mimimi_core.frontend import Frontend
from mimimi_core.metrics import AucReport, auc_report, youden_j
from mimimi_core.pack import Pack
from mimimi_core.precision import use_bf16
from mimimi_core.scoring import ClipScores, Threshold, fit_threshold, score_clips
from mimimi_core.training import Training, held_out_normals


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """AUCs per split, the scores behind the test's, and a threshold per machine id.

    Whatever is by machine id is in the order of the network's ids, `machine_ids`.
    """

    val: AucReport
    test: AucReport
    dev: AucReport  # val and test together: only to compare with published tables
    test_scores: ClipScores
    test_labels: np.ndarray  # int64 (n,), 0 normal, 1 anomaly
    thresholds: dict[str, Threshold | None]  # None where an id has too few held-out normals
    val_youden_j: dict[str, float | None]  # only to compare: no threshold comes from labels

    @property
    def machine_ids(self) -> tuple[str, ...]:
        """Names of the ids."""
        return tuple(self.thresholds)


def evaluate(training: Training) -> Evaluation:
    """Open the test; thresholds come from normals of `holdout` and `val` alone."""
    pack = training.pack
    normals = training.scores(held_out_normals(pack))
    thresholds = {
        machine_id: fit_threshold(normals.scores[normals.id_index == index])
        for index, machine_id in enumerate(pack.machine_ids)
    }
    return _evaluation(pack, training.scores, thresholds)


def evaluate_detector(detector: Detector, pack: Pack) -> Evaluation:
    """Open the test of a pack to a saved detector, which keeps its thresholds.

    Raises:
        DetectorError: The pack has clips of a machine that the detector does not know.
    """
    unknown = [name for name in pack.machine_ids if name not in detector.machine_ids]
    if unknown:
        raise DetectorError(
            f"the machine ids of {pack.machine_type} must be known to the model, and it knows "
            f"{', '.join(detector.machine_ids)}, not {', '.join(unknown)}: leave their clips out, "
            "or train on them"
        )
    columns = np.array([detector.machine_ids.index(name) for name in pack.machine_ids])
    config = detector.config
    frontend = Frontend(config.frontend).to(detector.device)
    crops = Crops.from_pack(pack, config.frontend, detector.device)
    bf16 = use_bf16(config.train.precision, detector.device)

    def score(clips: np.ndarray) -> ClipScores:
        nll = np.empty((0, len(detector.machine_ids)))
        if len(clips):
            nll = score_clips(detector.network, frontend, crops, clips, bf16)
        return ClipScores(clips=clips, id_index=columns[pack.id_index[clips]], nll=nll)

    return _evaluation(pack, score, detector.thresholds)


def _evaluation(
    pack: Pack,
    score: Callable[[np.ndarray], ClipScores],
    thresholds: Mapping[str, Threshold | None],
) -> Evaluation:
    """Score val and test once each; `score` counts ids in the order of `thresholds`."""
    machine_ids = tuple(thresholds)
    found = {split: score(pack.select(split)) for split in ("val", "test")}

    def report(*splits: str) -> AucReport:
        return auc_report(
            np.concatenate([found[split].scores for split in splits]),
            np.concatenate([pack.labels[found[split].clips] for split in splits]),
            np.concatenate([found[split].id_index for split in splits]),
            machine_ids,
        )

    val, test = found["val"], found["test"]
    val_labels = pack.labels[val.clips]
    return Evaluation(
        val=report("val"),
        test=report("test"),
        dev=report("val", "test"),
        test_scores=test,
        test_labels=pack.labels[test.clips],
        thresholds=dict(thresholds),
        val_youden_j={
            machine_id: youden_j(val.scores[val.id_index == i], val_labels[val.id_index == i])
            for i, machine_id in enumerate(machine_ids)
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
