"""AUC and pAUC per machine id, their mean over ids, and bootstrap intervals.

Scores of different ids share no scale, so no AUC here ever pools them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

MAX_FPR = 0.1  # of the partial AUC, as in DCASE Task 2 since 2020
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class IdAuc:
    """Ranking quality on one machine id; `auc`, `pauc`, `ci` are None without both labels."""

    machine_id: str
    auc: float | None
    pauc: float | None
    ci: tuple[float, float] | None
    n_normal: int
    n_anomaly: int


@dataclass(frozen=True, kw_only=True)
class AucReport:
    """Mean over the ids that have an AUC, with a 95 % bootstrap interval; None if no id has one."""

    auc: float | None
    pauc: float | None
    ci: tuple[float, float] | None
    worst_auc: float | None
    per_id: tuple[IdAuc, ...]

    @property
    def without_auc(self) -> tuple[str, ...]:
        """Ids left out of the mean because they lack normals or anomalies."""
        return tuple(x.machine_id for x in self.per_id if x.auc is None)

    @property
    def n_clips(self) -> int:
        """Clips behind the mean."""
        return sum(x.n_normal + x.n_anomaly for x in self.per_id if x.auc is not None)


def auc_report(
    scores: np.ndarray,
    labels: np.ndarray,
    id_index: np.ndarray,
    machine_ids: Sequence[str],
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> AucReport:
    """AUC, pAUC (`max_fpr` 0.1, McClish-standardised by scikit-learn) and intervals.

    Args:
        scores: float `(n,)` anomaly scores, higher is more anomalous.
        labels: int `(n,)`, 0 normal, 1 anomaly.
        id_index: int `(n,)` index of each clip's id into `machine_ids`.
        machine_ids: Names of the ids.
        n_bootstrap: Resamplings behind the intervals.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    per_id, resampled = [], []
    for index, machine_id in enumerate(machine_ids):
        of_id = id_index == index
        normal, anomaly = scores[of_id & (labels == 0)], scores[of_id & (labels == 1)]
        auc = pauc = ci = None
        if len(normal) and len(anomaly):
            truth, score = labels[of_id], scores[of_id]
            auc = float(roc_auc_score(truth, score))
            pauc = float(roc_auc_score(truth, score, max_fpr=MAX_FPR))
            aucs = _bootstrap_aucs(normal, anomaly, n_bootstrap, rng)
            resampled.append(aucs)
            ci = _interval(aucs, auc)
        per_id.append(
            IdAuc(
                machine_id=machine_id,
                auc=auc,
                pauc=pauc,
                ci=ci,
                n_normal=len(normal),
                n_anomaly=len(anomaly),
            )
        )
    if not resampled:
        return AucReport(auc=None, pauc=None, ci=None, worst_auc=None, per_id=tuple(per_id))
    found = [x.auc for x in per_id if x.auc is not None]
    mean = float(np.mean(found))
    return AucReport(
        auc=mean,
        pauc=float(np.mean([x.pauc for x in per_id if x.pauc is not None])),
        ci=_interval(np.mean(resampled, axis=0), mean),
        worst_auc=min(found),
        per_id=tuple(per_id),
    )


def _bootstrap_aucs(
    normal: np.ndarray, anomaly: np.ndarray, n_bootstrap: int, rng: np.random.Generator
) -> np.ndarray:
    """AUCs of resampled clips, normals and anomalies apart.

    One pseudo-clip that ties with everything joins each side: a plain bootstrap of an AUC of 1
    has no width at all, whether 2 clips or 2,000 stand behind it. docs/log.md has the coverage.
    """
    wins = np.full((len(normal) + 1, len(anomaly) + 1), 0.5)
    difference = anomaly[None, :] - normal[:, None]
    wins[:-1, :-1] = (np.sign(difference) + 1) / 2
    n, m = wins.shape
    times_normal = rng.multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    times_anomaly = rng.multinomial(m, np.full(m, 1 / m), size=n_bootstrap)
    return np.asarray(((times_normal @ wins) * times_anomaly).sum(axis=1) / (n * m))


def _interval(resampled: np.ndarray, estimate: float) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(min(low, estimate)), float(max(high, estimate))
