"""How alike two figures rank the same trials."""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

MIN_TRIALS = 5  # fewer say nothing
_RESAMPLINGS = 2000


class RankCorrelation(NamedTuple):
    """Spearman's, with a 95 % bootstrap interval over trials; None where it is not defined."""

    figure: str
    n: int
    rho: float | None
    interval: tuple[float, float] | None


def spearman(figure: str, pairs: np.ndarray) -> RankCorrelation:
    """Rank correlation of two columns.

    Args:
        figure: Name of the first one.
        pairs: float `(n, 2)`.
    """
    n = len(pairs)
    if n < MIN_TRIALS:
        return RankCorrelation(figure, n, None, None)
    rho = float(correlate_ranks(pairs[None])[0])
    if not np.isfinite(rho):  # one of the two is the same for all trials
        return RankCorrelation(figure, n, None, None)
    picks = np.random.default_rng(0).integers(n, size=(_RESAMPLINGS, n))
    resampled = correlate_ranks(pairs[picks])
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return RankCorrelation(figure, n, rho, (float(low), float(high)))


def correlate_ranks(pairs: np.ndarray) -> np.ndarray:
    """Spearman's coefficient `(m,)` of m samples `(m, n, 2)`; NaN where a column is constant."""
    ranks = rankdata(pairs, axis=1)
    x, y = np.moveaxis(ranks - ranks.mean(axis=1, keepdims=True), 2, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1)))
