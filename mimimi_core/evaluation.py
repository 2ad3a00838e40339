"""Makes a detector of trained networks, and judges it on the clips that were kept for it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mimimi_core.config import ID_FREE, NetworkKind
from mimimi_core.detector import Detector, DetectorError, Member
from mimimi_core.ensemble import Scale, fit_scale
from mimimi_core.metrics import AucReport, auc_report, shown, youden_j
from mimimi_core.pack import Pack
from mimimi_core.scoring import ClipScores, Threshold, fit_threshold
from mimimi_core.training import NonFiniteLossError, Training, held_out_normals

logger = logging.getLogger(__name__)


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
    thresholds: dict[str, Threshold | None]  # None as of `fit_threshold`
    val_youden_j: dict[str, float | None]  # only to compare: no threshold comes from labels
    kinds: tuple[NetworkKind, ...]  # of the networks that judge together

    @property
    def machine_ids(self) -> tuple[str, ...]:
        """Names of the ids."""
        return tuple(self.thresholds)

    @property
    def names_ids(self) -> bool:
        """Whether a network scores a clip differently under each id, and so says whose it is."""
        return any(kind not in ID_FREE for kind in self.kinds)


def build_detector(trainings: Sequence[Training]) -> Detector:
    """A detector of one trained network, or of several on the same pack.

    Thresholds, and the scales of several, come from normals of `holdout` and `val` alone.

    Raises:
        NonFiniteLossError: A score is no number.
        EnsembleError: Several networks cannot be put on one scale.
    """
    pack = trainings[0].pack
    found = [training.scores(held_out_normals(pack)) for training in trainings]
    own, n_ids = found[0].id_index, len(pack.machine_ids)
    scales: list[Scale | None] = [None]
    scores, lowest = found[0].scores, np.zeros(n_ids)  # no system's own score is below 0
    if len(trainings) > 1:
        fitted = [fit_scale(one.scores, own, n_ids) for one in found]
        z = [scale.z(one.nll) for scale, one in zip(fitted, found, strict=True)]
        scales, scores = list(fitted), np.mean(z, axis=0)[np.arange(len(own)), own]
        lowest = np.mean([scale.z(lowest) for scale in fitted], axis=0)
    return Detector(
        members=[
            Member(config=training.config, network=training.network, scale=scale)
            for training, scale in zip(trainings, scales, strict=True)
        ],
        machine_type=pack.machine_type,
        machine_ids=pack.machine_ids,
        thresholds={
            machine_id: fit_threshold(scores[own == index], lowest=lowest[index])
            for index, machine_id in enumerate(pack.machine_ids)
        },
        trained_on=pack.digests[pack.select("train", label=0)],
        untrained_ids=pack.untrained_ids,
    )


def evaluate(detector: Detector, pack: Pack) -> Evaluation:
    """Open the test of a pack to a detector; labelled clips that trained it are left out.

    Raises:
        DetectorError: The pack has clips of a machine that the detector does not know.
        NonFiniteLossError: A score is no number.
    """
    unknown = [name for name in pack.machine_ids if name not in detector.machine_ids]
    if unknown:
        raise DetectorError(
            f"the machine ids of {pack.machine_type} must be known to the model, and it knows "
            f"{', '.join(detector.machine_ids)}, not {', '.join(unknown)}: leave their clips out, "
            "or train on them"
        )
    machine_ids = detector.machine_ids
    clips = {split: pack.select(split) for split in ("val", "test")}
    unseen = {split: detector.unseen(pack, of_split) for split, of_split in clips.items()}
    n_seen = sum(len(clips[split]) - len(unseen[split]) for split in clips)
    if n_seen:
        logger.warning(
            "%s: labelled clips left out, as they trained this model: %d",
            pack.machine_type,
            n_seen,
        )
    found = {split: detector.score_pack(pack, of_split) for split, of_split in unseen.items()}
    for scores in found.values():
        if not np.isfinite(scores.nll).all():
            raise NonFiniteLossError(
                f"{pack.machine_type}: a score of a labelled clip is no number"
            )

    def report(*splits: str) -> AucReport:
        return auc_report(
            np.concatenate([found[split].scores for split in splits]),
            np.concatenate([pack.labels[found[split].clips] for split in splits]),
            np.concatenate([found[split].id_index for split in splits]),
            machine_ids,
            untrained=detector.untrained_ids,
        )

    val, test = found["val"], found["test"]
    val_labels = pack.labels[val.clips]
    return Evaluation(
        val=report("val"),
        test=report("test"),
        dev=report("val", "test"),
        test_scores=test,
        test_labels=pack.labels[test.clips],
        thresholds=dict(detector.thresholds),
        val_youden_j={
            machine_id: None
            if machine_id in detector.untrained_ids
            else youden_j(val.scores[val.id_index == i], val_labels[val.id_index == i])
            for i, machine_id in enumerate(machine_ids)
        },
        kinds=tuple(member.config.network.kind for member in detector.members),
    )


def describe(report: AucReport, name: str) -> list[str]:
    """Lines for people: the mean with its interval, then a line per machine id."""
    if report.auc is None or report.ci is None:
        return [f"{name}: none, no trained machine id has both normal and anomalous clips there"]
    lines = [
        f"{name} {shown(report.auc, report.ci)}, pAUC {shown(report.pauc, report.pauc_ci)}, "
        f"worst id {report.worst_auc:.3f} ({report.n_clips} clips)"
    ]
    for x in report.per_id:
        if x.auc is None or x.ci is None:
            lines.append(f"  {x.machine_id}  no AUC, left out of the mean ({x.clips})")
        else:
            lines.append(
                f"  {x.machine_id}  AUC {shown(x.auc, x.ci)}  "
                f"pAUC {shown(x.pauc, x.pauc_ci)}  ({x.clips})"
            )
    return lines
