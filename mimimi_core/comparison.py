"""Compares two detectors on the same clips: difference of their mean-over-ids AUC, paired.

One test answers "is the candidate better?" (null: no difference) and "is it no worse?" (null:
worse by a margin). It is that of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988): an AUC is
the mean of its clips' placements, so the spread of the placements gives its variance. Two things
differ, because a normal approximation with the plain variance is wrong where clips are few:

- The spread is taken about the difference that the null states, not about the observed one. AUC 1
  against 0.5 on two clips a side has no spread of the latter kind, and would be certain.
- A difference may come from few clips, of which a small test holds none: what the null states
  beyond the observed difference gets at least the variance of a difference that is total in some
  clips and nil in the others, as in the score test for paired proportions (Tango, Statistics in
  Medicine 17, 1998) when no pair differs.

docs/log.md has the error rates measured from 2 to 400 clips.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from mimimi_core.metrics import CONFIDENCE, Interval

_Z = float(ndtri((1 + CONFIDENCE) / 2))
_GRID = np.linspace(-1, 1, 20_001)  # differences that an interval may begin or end at


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidate minus champion, mean over the ids that have both labels."""

    difference: float
    ci: Interval  # 95 %: the differences that the test does not reject
    p_better: float  # one-sided; small where the candidate is better
    p_no_worse: float  # one-sided; small where it is not worse by the margin
    n_clips: int


def compare_aucs(
    candidate: np.ndarray,
    champion: np.ndarray,
    labels: np.ndarray,
    id_index: np.ndarray,
    margin: float,
) -> Comparison | None:
    """Test the difference of two detectors' mean AUC.

    Args:
        candidate: float `(n,)` anomaly scores of the clips, higher is more anomalous.
        champion: float `(n,)` of the same clips; the two need no common scale, nor do ids.
        labels: int `(n,)`, 0 normal, 1 anomaly.
        id_index: int `(n,)` which machine id each clip is from.
        margin: Difference of mean AUC that "no worse" is about, > 0.

    Returns:
        None if no id has both labels.
    """
    ids = list(_ids(labels, id_index))
    if not ids:
        return None
    mean = _Evidence.mean(
        [
            _Evidence.of_id(
                candidate[normal], champion[normal], candidate[anomaly], champion[anomaly]
            )
            for normal, anomaly in ids
        ]
    )
    p_better = mean.p_value(0.0)
    return Comparison(
        difference=mean.difference,
        ci=mean.interval(),
        p_better=p_better,
        p_no_worse=min(p_better, mean.p_value(-margin)),
        n_clips=sum(len(normal) + len(anomaly) for normal, anomaly in ids),
    )


def bootstrap_interval(
    candidate: np.ndarray,
    champion: np.ndarray,
    labels: np.ndarray,
    id_index: np.ndarray,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """95 % interval of the difference from resampled clips, per id and label: a cross-check.

    Takes what `compare_aucs` takes; some id must have both labels. Too narrow where clips are few.
    """
    rng = np.random.default_rng(seed)
    resampled = []
    for normal, anomaly in _ids(labels, id_index):
        gain = _wins(candidate[normal], candidate[anomaly])
        gain -= _wins(champion[normal], champion[anomaly])
        n, m = gain.shape
        times_normal = rng.multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
        times_anomaly = rng.multinomial(m, np.full(m, 1 / m), size=n_bootstrap)
        resampled.append(((times_normal @ gain) * times_anomaly).sum(axis=1) / (n * m))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.mean(resampled, axis=0), [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class _Evidence:
    """An observed difference, and what its variance under any null is made of."""

    difference: float
    squares: float  # of the placements' gains; these three sum over the clips about a null
    sums: float
    share: float
    per_clip: float  # one over the number of clips, of the label with fewer

    @classmethod
    def of_id(
        cls,
        candidate_normal: np.ndarray,
        champion_normal: np.ndarray,
        candidate_anomaly: np.ndarray,
        champion_anomaly: np.ndarray,
    ) -> "_Evidence":
        by_label = (
            # of each anomaly, the share of normals that it exceeds; of each normal, the reverse
            _below(candidate_anomaly, candidate_normal) - _below(champion_anomaly, champion_normal),
            _below(champion_normal, champion_anomaly) - _below(candidate_normal, candidate_anomaly),
        )
        return cls(
            difference=float(by_label[0].mean()),
            squares=sum(float((gain**2).mean()) / len(gain) for gain in by_label),
            sums=sum(float(gain.mean()) / len(gain) for gain in by_label),
            share=sum(1 / len(gain) for gain in by_label),
            per_clip=max(1 / len(gain) for gain in by_label),
        )

    @classmethod
    def mean(cls, ids: list["_Evidence"]) -> "_Evidence":
        """Of ids whose clips are independent: variances add up."""
        k = len(ids)
        return cls(
            difference=sum(x.difference for x in ids) / k,
            squares=sum(x.squares for x in ids) / k**2,
            sums=sum(x.sums for x in ids) / k**2,
            share=sum(x.share for x in ids) / k**2,
            per_clip=sum(x.per_clip for x in ids) / k**2,
        )

    def variance(self, null: np.ndarray) -> np.ndarray:
        """Of the observed difference, if the true one were `null`."""
        about_null = self.squares - 2 * null * self.sums + null**2 * self.share
        low, high = sorted((0.0, self.difference))
        unseen = np.maximum(np.maximum(low - null, null - high), 0.0)
        return np.asarray(np.maximum(about_null, unseen * (1 - unseen) * self.per_clip))

    def p_value(self, null: float) -> float:
        """One-sided, of the null that the difference is at most `null`."""
        excess = self.difference - null
        if not excess:
            return 0.5
        return float(ndtr(-excess / np.sqrt(self.variance(np.array(null)))))

    def interval(self) -> Interval:
        """From the lowest to the highest null that is not rejected."""
        nulls = np.append(_GRID, self.difference)
        is_kept = (self.difference - nulls) ** 2 <= _Z**2 * self.variance(nulls)
        if not is_kept[len(_GRID) // 2]:  # what differs from 0 lies on one side of it
            is_kept &= nulls * self.difference > 0
        return float(nulls[is_kept].min()), float(nulls[is_kept].max())


def _ids(labels: np.ndarray, id_index: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of the normal and anomalous clips of each id that has both."""
    for index in np.unique(id_index):
        of_id = id_index == index
        normal, anomaly = (np.flatnonzero(of_id & (labels == label)) for label in (0, 1))
        if len(normal) and len(anomaly):
            yield normal, anomaly


def _below(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Share of `reference` below each value, ties half: placements in O(n log n).

    The same as the difference of midranks of Sun and Xu (IEEE Signal Processing Letters 21, 2014).
    """
    ordered = np.sort(reference)
    left, right = np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right")
    return np.asarray((left + right) / (2 * len(reference)))


def _wins(normal: np.ndarray, anomaly: np.ndarray) -> np.ndarray:
    """`(n, m)`: 1 where the anomaly scores higher than the normal clip, 0.5 where equal."""
    return np.asarray((np.sign(anomaly[None, :] - normal[:, None]) + 1) / 2)
