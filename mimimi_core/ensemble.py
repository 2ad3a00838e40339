"""Puts scores of several systems on one scale, so that their mean is an ensemble's score.

By the mean and the standard deviation of normal clips held out of training, per machine id, as the
scores of different ids and systems share no scale. C ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class EnsembleError(ValueError):
    """Systems cannot be put on one scale."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Where a system's scores of normal clips lie, float64 `(C,)` each."""

    mean: np.ndarray
    std: np.ndarray

    def z(self, nll: np.ndarray) -> np.ndarray:
        """Scores `(n, C)` in standard deviations from each id's normal clips."""
        return np.asarray((nll - self.mean) / self.std)

    def to_lists(self) -> dict[str, list[float]]:
        """For a file; JSON keeps every bit of a float."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_lists(cls, mean: Sequence[float], std: Sequence[float]) -> "Scale":
        """The inverse of `to_lists`."""
        return cls(mean=np.array(mean, np.float64), std=np.array(std, np.float64))


def fit_scale(scores: np.ndarray, id_index: np.ndarray, n_ids: int) -> Scale:
    """The scale of held-out normal clips.

    Args:
        scores: float64 `(n,)` of each clip under its own id.
        id_index: int `(n,)` the id of each.
        n_ids: C.

    Raises:
        EnsembleError: No id has two clips whose scores differ. An id that has none takes the mean
            of the other ids' scales: a guess, but the same for all its clips.
    """
    of_ids = [scores[id_index == index] for index in range(n_ids)]
    known = [len(s) > 1 and np.ptp(s) > 0 for s in of_ids]
    if not any(known):
        raise EnsembleError(
            "an ensemble needs a machine id with two held-out normal clips whose scores differ, "
            f"got {', '.join(str(len(s)) for s in of_ids)} clips of the ids: add normal recordings "
            "if they are too few, else leave out the network that scores them all alike"
        )
    means = np.array([s.mean() if k else np.nan for s, k in zip(of_ids, known, strict=True)])
    stds = np.array([s.std(ddof=1) if k else np.nan for s, k in zip(of_ids, known, strict=True)])
    return Scale(
        mean=np.where(known, means, np.nanmean(means)),
        std=np.where(known, stds, np.nanmean(stds)),
    )
