"""AUC and pAUC per machine id, their mean over ids, and 95 % intervals of both.

Scores of different ids share no scale, so no AUC here ever pools them.

An interval is the percentile bootstrap's over clips, normals and anomalies apart, and never
narrower than the score interval: resampling two clips that are ranked rightly gives an AUC of 1
every time, an interval without width. docs/log.md has the coverage of each alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri
from sklearn.metrics import roc_auc_score, roc_curve

MAX_FPR = 0.1  # of the partial AUC, as in DCASE Task 2 since 2020
CONFIDENCE = 0.95
_Z = float(ndtri((1 + CONFIDENCE) / 2))
_LEAST_PAUC = 0.5 * (1 - MAX_FPR / (2 - MAX_FPR))  # that of a ranking without any hit
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class IdAuc:
    """Ranking quality on one machine id; None without both labels, or clips to train on.

    `pauc_ci` is None as well where all resamplings agree, as where every anomaly scores above every
    normal clip.
    """

    machine_id: str
    auc: float | None
    pauc: float | None
    ci: Interval | None
    pauc_ci: Interval | None = None
    n_normal: int
    n_anomaly: int
    is_trained: bool = True

    @property
    def clips(self) -> str:
        """For people: how many, and whether any but those trained the model."""
        counts = f"{self.n_normal} normal, {self.n_anomaly} anomalous"
        return counts if self.is_trained else f"{counts}; none to train on"


@dataclass(frozen=True, kw_only=True)
class AucReport:
    """Mean over the ids that have an AUC, with its interval; None if no id has one."""

    auc: float | None
    pauc: float | None
    ci: Interval | None
    pauc_ci: Interval | None = None
    worst_auc: float | None
    per_id: tuple[IdAuc, ...]

    def __str__(self) -> str:
        """The AUC, never without its interval and the number of clips."""
        return "none" if self.auc is None else f"{shown(self.auc, self.ci)} ({self.n_clips} clips)"

    @property
    def without_auc(self) -> tuple[str, ...]:
        """Ids left out of the mean: they lack normals, anomalies or clips to train on."""
        return tuple(x.machine_id for x in self.per_id if x.auc is None)

    @property
    def aucs(self) -> dict[str, float]:
        """AUC by machine id, of those that have one."""
        return {x.machine_id: x.auc for x in self.per_id if x.auc is not None}

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
    untrained: Sequence[str] = (),
) -> AucReport:
    """AUC, pAUC (`max_fpr` 0.1, McClish-standardised by scikit-learn) and intervals.

    Args:
        scores: float `(n,)` anomaly scores, higher is more anomalous; or `(S, n)`, of S networks on
            the same clips: figures are then means over networks, intervals are over clips alone.
        labels: int `(n,)`, 0 normal, 1 anomaly.
        id_index: int `(n,)` index of each clip's id into `machine_ids`.
        machine_ids: Names of the ids.
        n_bootstrap: Resamplings behind the intervals.
        seed: Of the resampling.
        untrained: Ids that get no AUC, as no clip of theirs trained the network.
    """
    scores = np.atleast_2d(scores)
    rng = np.random.default_rng(seed)
    per_id: list[IdAuc] = []
    resampled: list[np.ndarray] = []
    resampled_paucs: list[np.ndarray] = []
    for index, machine_id in enumerate(machine_ids):
        of_id = id_index == index
        normal, anomaly = scores[:, of_id & (labels == 0)], scores[:, of_id & (labels == 1)]
        n_normal, n_anomaly = normal.shape[1], anomaly.shape[1]
        auc = pauc = ci = pauc_ci = None
        is_trained = machine_id not in untrained
        if n_normal and n_anomaly and is_trained:
            truth = labels[of_id]
            ranked = scores[:, of_id]
            auc = float(np.mean([roc_auc_score(truth, x) for x in ranked]))
            pauc = float(np.mean([roc_auc_score(truth, x, max_fpr=MAX_FPR) for x in ranked]))
            aucs_of_id, paucs_of_id = _bootstrap(normal, anomaly, n_bootstrap, rng)
            resampled.append(aucs_of_id)
            resampled_paucs.append(paucs_of_id)
            ci = _union(_percentiles(aucs_of_id), _score_interval(auc, n_normal, n_anomaly))
            pauc_ci = _around(pauc, paucs_of_id)
        per_id.append(
            IdAuc(
                machine_id=machine_id,
                auc=auc,
                pauc=pauc,
                ci=ci,
                pauc_ci=pauc_ci,
                n_normal=n_normal,
                n_anomaly=n_anomaly,
                is_trained=is_trained,
            )
        )
    found = [x for x in per_id if x.auc is not None]
    if not found:
        return AucReport(auc=None, pauc=None, ci=None, worst_auc=None, per_id=tuple(per_id))
    aucs = np.array([x.auc for x in found])
    limits = [_score_interval(x.auc or 0.0, x.n_normal, x.n_anomaly) for x in found]
    mover = interval_of_mean(aucs, limits)
    pauc_of_all = float(np.mean([x.pauc for x in found]))
    return AucReport(
        auc=float(aucs.mean()),
        pauc=pauc_of_all,
        ci=_union(_percentiles(np.mean(resampled, axis=0)), mover),
        pauc_ci=_around(pauc_of_all, np.mean(resampled_paucs, axis=0)),
        worst_auc=float(aucs.min()),
        per_id=tuple(per_id),
    )


def shown(value: float | None, ci: Interval | None) -> str:
    """For people: `0.912 [0.871, 0.945]`; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.3f}" if ci is None else f"{value:.3f} [{ci[0]:.3f}, {ci[1]:.3f}]"


def youden_j(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The most that recall exceeds the false alarm rate by, whatever the level; None without both.

    The level that reaches it is chosen by the labels, so it is not returned: thresholds come from
    normal clips alone (`scoring.fit_threshold`).

    Args:
        scores: float `(n,)` anomaly scores of one machine id.
        labels: int `(n,)`, 0 normal, 1 anomaly.
    """
    if len(np.unique(labels)) < 2:
        return None
    false_alarm_rate, recall, _ = roc_curve(labels, scores)
    return float((recall - false_alarm_rate).max())


def interval_of_mean(aucs: np.ndarray, intervals: Sequence[Interval]) -> Interval:
    """Limits of the mean of AUCs of different clips from the limits of each.

    MOVER (Zou and Donner 2008), kept within 0..1.

    Args:
        aucs: float `(K,)`.
        intervals: Of each.
    """
    low, high = np.array(intervals).T
    mean, k = float(aucs.mean()), len(aucs)
    return (
        max(0.0, mean - float(np.linalg.norm(aucs - low)) / k),
        min(1.0, mean + float(np.linalg.norm(high - aucs)) / k),
    )


def _bootstrap(
    normal: np.ndarray, anomaly: np.ndarray, n_bootstrap: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and pAUCs `(n_bootstrap,)` of resampled clips, from scores `(S, n)` and `(S, m)`."""
    wins = (np.sign(anomaly[:, None, :] - normal[:, :, None]).mean(axis=0) + 1) / 2
    n, m = wins.shape
    times_normal = rng.multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    times_anomaly = rng.multinomial(m, np.full(m, 1 / m), size=n_bootstrap)
    aucs = ((times_normal @ wins) * times_anomaly).sum(axis=1) / (n * m)
    paucs = [
        partial_aucs(x, y, times_normal, times_anomaly)
        for x, y in zip(normal, anomaly, strict=True)
    ]
    return aucs, np.mean(paucs, axis=0)


def partial_aucs(
    normal: np.ndarray, anomaly: np.ndarray, times_normal: np.ndarray, times_anomaly: np.ndarray
) -> np.ndarray:
    """Standardised pAUCs `(B,)` of clips that count several times, as scikit-learn weighs them.

    Args:
        normal: float `(n,)` scores.
        anomaly: float `(m,)`.
        times_normal: int `(B, n)`, how often each counts; no row is all 0.
        times_anomaly: int `(B, m)`.
    """
    scores = np.concatenate([normal, anomaly])
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)  # of clips with equal scores

    def rates(times: np.ndarray, first: int) -> np.ndarray:
        """Share of clips from each score up, `(B, G + 1)`."""
        of_all = np.zeros((len(times), len(scores)))
        of_all[:, first : first + times.shape[1]] = times
        shares = of_all[:, order].cumsum(axis=1)[:, is_last] / times.sum(axis=1, keepdims=True)
        return np.pad(shares, ((0, 0), (1, 0)))

    fpr, tpr = rates(times_normal, 0), rates(times_anomaly, len(normal))
    low, high = np.minimum(fpr[:, :-1], MAX_FPR), np.minimum(fpr[:, 1:], MAX_FPR)
    rise = np.diff(tpr, axis=1) / np.maximum(np.diff(fpr, axis=1), 1e-300)
    middle = tpr[:, :-1] + rise * ((low + high) / 2 - fpr[:, :-1])
    area = np.where(high > low, (high - low) * middle, 0.0).sum(axis=1)
    least = MAX_FPR**2 / 2
    return np.asarray(0.5 * (1 + (area - least) / (MAX_FPR - least)))


def _around(pauc: float, resampled: np.ndarray) -> Interval | None:
    """Interval of a partial AUC; None where all resamplings agree.

    Few false alarms hang on the few highest normals, and resampling can only lose those: it errs
    upwards. So this is the percentile interval together with its mirror image about the estimate;
    docs/log.md has the coverage of both.
    """
    low, high = _percentiles(resampled)
    if low == high:
        return None
    return max(_LEAST_PAUC, min(low, 2 * pauc - high)), min(1.0, max(high, 2 * pauc - low))


def _percentiles(resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _score_interval(auc: float, n: int, m: int) -> Interval:
    """AUCs whose own standard error puts them `_Z` away from `auc` (Newcombe 2006, method 5)."""

    def excess(theta: float) -> float:
        mean = (n + m) / 2 - 1
        spread = 1 + mean * (1 - theta) / (2 - theta) + mean * theta / (1 + theta)
        return (auc - theta) ** 2 - _Z**2 * theta * (1 - theta) * spread / (n * m)

    edge = 1e-9  # at `auc` itself, and at 0 and 1, `excess` touches 0 without being a limit
    low = brentq(excess, edge**2, auc - edge) if auc > edge else 0.0
    high = brentq(excess, auc + edge, 1 - edge**2) if auc < 1 - edge else 1.0
    return float(low), float(high)


def _union(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])
