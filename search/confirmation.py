"""Chooses the winner by fresh seeds: the best of many noisy trials overstates itself.

The best trials are trained again with seeds that the search never saw, and the highest mean wins.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState


def finalists(trials: Sequence[FrozenTrial], k: int) -> list[int]:
    """Numbers of the k best complete trials, best first; of equals, the earlier."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    ranked = sorted(complete, key=lambda t: (-(t.value or 0.0), t.number))
    return [trial.number for trial in ranked[:k]]


def choose(values: Mapping[int, Sequence[float]]) -> int:
    """The finalist whose fresh seeds have the highest mean; of equals, the earlier.

    Args:
        values: Number of a finalist -> objective of each of its seeds, at least one.
    """
    return min(values, key=lambda number: (-float(np.mean(values[number])), number))
