"""Anomaly scores of clips, and thresholds from normal clips.

`anomaly_score` = mean over the deterministic windows of a clip of the negative log-likelihood of
its id: `-log softmax(total)[its id]` of the paper's (section III). Higher is more anomalous.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mimimi_core.crops import Crops, window_offsets
from mimimi_core.frontend import Frontend
from mimimi_core.precision import autocast
from mimimi_core.systems import System

WINDOWS_PER_BATCH = 64
FALSE_ALARM_RATE = 0.1  # DCASE Task 2 baselines: 90th percentile of a gamma fit


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """Scores of some clips of a pack."""

    clips: np.ndarray  # int64 (n,) indices into the pack
    id_index: np.ndarray  # int64 (n,) the id each clip claims
    nll: np.ndarray  # float64 (n, C) mean over windows of the negative log-likelihood, for every id

    @property
    def scores(self) -> np.ndarray:
        """Anomaly scores float64 `(n,)`."""
        return np.asarray(self.nll[np.arange(len(self.clips)), self.id_index])


def score_clips(
    system: System, frontend: Frontend, crops: Crops, clips: np.ndarray, bf16: bool
) -> np.ndarray:
    """Mean negative log-likelihood of every id over the windows of each clip.

    Args:
        system: In evaluation mode on the device of `frontend`.
        frontend: Waveforms to features.
        crops: Holds the clips.
        clips: int64 `(n,)` indices into `crops`.
        bf16: Multiply in bfloat16.

    Returns:
        float64 `(n, C)`.
    """
    device = frontend.window.device
    offsets = [window_offsets(int(crops.lengths[clip]), crops.config) for clip in clips]
    counts = np.array([len(o) for o in offsets])
    clip_of_window = torch.from_numpy(np.repeat(clips, counts)).to(device)
    offset_of_window = torch.tensor([o for per_clip in offsets for o in per_clip], device=device)
    nll = []
    with torch.inference_mode(), autocast(device, bf16):
        for first in range(0, len(clip_of_window), WINDOWS_PER_BATCH):
            batch = slice(first, first + WINDOWS_PER_BATCH)
            features = frontend(crops.at(clip_of_window[batch], offset_of_window[batch]))
            nll.append(system.nll(features))
    values = torch.cat(nll).double().cpu().numpy()
    sums = np.add.reduceat(values, np.cumsum(counts) - counts, axis=0)
    return np.asarray(sums / counts[:, None])


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Decision level of one id: a score above it is called an anomaly."""

    value: float
    false_alarm_rate: float  # share of normal clips that are to exceed it
    n_normals: int  # held-out normal clips behind the fit


def are_alike(values: np.ndarray) -> bool:
    """Whether values `(n,)`, or rows `(n, D)`, differ by no more than rounding."""
    return not len(values) or bool(np.ptp(values, axis=0).max() <= 1e-6 * np.abs(values).max())


def fit_threshold(
    normal_scores: Sequence[float] | np.ndarray,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    lowest: float = 0.0,
) -> Threshold | None:
    """Quantile of a gamma distribution fitted to scores of held-out normals, as DCASE baselines do.

    Args:
        normal_scores: Of one id.
        false_alarm_rate: Share of normal clips that are to exceed the threshold.
        lowest: What no score can be below, where the distribution begins.

    Returns:
        None where fewer than two scores that differ by more than rounding leave nothing to fit.
    """
    scores = np.maximum(np.asarray(normal_scores, dtype=np.float64) - lowest, 1e-12)
    if are_alike(scores):
        return None
    from scipy.stats import gamma  # here: it takes a second, and scoring alone needs it not

    shape, _, scale = gamma.fit(scores, floc=0)
    return Threshold(
        value=float(lowest + gamma.ppf(1 - false_alarm_rate, shape, scale=scale)),
        false_alarm_rate=false_alarm_rate,
        n_normals=len(scores),
    )
