"""What an evaluation means machine by machine: decisions at the thresholds, both confusions.

Counts of different ids may be added up, as each id is judged by its own threshold; scores and AUCs
may not. What a figure cannot be computed from is None, never 0. Legend: `K` machine ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mimimi_core.evaluation import Evaluation
from mimimi_core.metrics import AucReport, IdAuc
from mimimi_core.scoring import Threshold


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Clips by what they are and what they were called; an alarm is a clip called anomalous."""

    true_positives: int  # anomalous, alarm
    false_positives: int  # normal, alarm
    true_negatives: int
    false_negatives: int

    @property
    def n_normal(self) -> int:
        """Normal clips."""
        return self.true_negatives + self.false_positives

    @property
    def n_anomaly(self) -> int:
        """Anomalous clips."""
        return self.true_positives + self.false_negatives

    @property
    def precision(self) -> float | None:
        """Share of the alarms that were right; None without alarms."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of the anomalous clips that raised an alarm; None without such clips."""
        return _share(self.true_positives, self.n_anomaly)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; 0 if all was missed, None without anomalies."""
        if not self.n_anomaly:
            return None
        hits = 2 * self.true_positives
        return hits / (hits + self.false_positives + self.false_negatives)

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of the normal clips that raised an alarm; None without such clips."""
        return _share(self.false_positives, self.n_normal)

    @property
    def matrix(self) -> np.ndarray:
        """int64 `(2, 2)`: rows are normal and anomalous clips, columns calm and alarm."""
        return np.array(
            [
                [self.true_negatives, self.false_positives],
                [self.false_negatives, self.true_positives],
            ]
        )


@dataclass(frozen=True, kw_only=True)
class IdAnalysis:
    """The test of one machine id."""

    auc: IdAuc
    threshold: Threshold | None
    decisions: Decisions | None  # None without a threshold
    val_youden_j: float | None  # what a level chosen by labels could reach on val, to compare with


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The test of a machine type."""

    report: AucReport
    per_id: tuple[IdAnalysis, ...]
    overall: Decisions | None  # of all ids that have a threshold; None if none has
    id_confusion: np.ndarray | None  # int64 (K, K), of normal clips; None if no id is named


def analyse(evaluation: Evaluation) -> Analysis:
    """Take the test of an evaluation apart."""
    found, labels = evaluation.test_scores, evaluation.test_labels
    per_id = []
    for index, auc in enumerate(evaluation.test.per_id):
        threshold = evaluation.thresholds[auc.machine_id]
        is_own = found.id_index == index
        per_id.append(
            IdAnalysis(
                auc=auc,
                threshold=threshold,
                decisions=decisions_at(threshold.value, found.scores[is_own], labels[is_own])
                if threshold
                else None,
                val_youden_j=evaluation.val_youden_j[auc.machine_id],
            )
        )
    is_trained = np.array([x.is_trained for x in evaluation.test.per_id])
    counts = (labels == 0) & is_trained[found.id_index]  # no other id can be named
    return Analysis(
        report=evaluation.test,
        per_id=tuple(per_id),
        overall=_sum([x.decisions for x in per_id if x.decisions]),
        id_confusion=confusion_of_ids(found.nll[counts], found.id_index[counts])
        if evaluation.names_ids
        else None,
    )


def decisions_at(level: float, scores: np.ndarray, labels: np.ndarray) -> Decisions:
    """Count what `Detector.decide` would say at a level.

    Args:
        level: A score above it is an alarm.
        scores: float `(n,)` anomaly scores of one machine id.
        labels: int `(n,)`, 0 normal, 1 anomaly.
    """
    is_alarm, is_anomaly = scores > level, labels == 1
    return Decisions(
        true_positives=int((is_alarm & is_anomaly).sum()),
        false_positives=int((is_alarm & ~is_anomaly).sum()),
        true_negatives=int((~is_alarm & ~is_anomaly).sum()),
        false_negatives=int((~is_alarm & is_anomaly).sum()),
    )


def confusion_of_ids(nll: np.ndarray, id_index: np.ndarray) -> np.ndarray:
    """How often the clips of each id (row) are taken for each id (column), int64 `(K, K)`.

    Args:
        nll: float `(n, K)` negative log-likelihoods under each id.
        id_index: int `(n,)` true ids.
    """
    n_ids = nll.shape[1]
    counts = np.zeros((n_ids, n_ids), dtype=np.int64)
    np.add.at(counts, (id_index, nll.argmin(axis=1)), 1)
    return counts


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _sum(decisions: Sequence[Decisions]) -> Decisions | None:
    if not decisions:
        return None
    return Decisions(
        **{f.name: sum(getattr(x, f.name) for x in decisions) for f in fields(Decisions)}
    )
