"""Scores of several systems on one scale."""

import numpy as np
import pytest
from scipy.stats import zscore
from sklearn.metrics import roc_auc_score

from mimimi_core.ensemble import EnsembleError, fit_scale
from search.study import StudyError, _require_scale
from tests.model_fixtures import resplit, tone_pack

RNG = np.random.default_rng(0)


def test_normal_clips_get_scipys_z_scores_per_id() -> None:
    own = np.repeat([0, 1], 20)
    scores = np.where(own == 0, RNG.normal(5, 2, 40), RNG.normal(-70, 30, 40))
    scale = fit_scale(scores, own, 2)
    z = scale.z(np.stack([scores, scores], axis=1))[np.arange(40), own]
    for index in (0, 1):
        np.testing.assert_allclose(z[own == index], zscore(scores[own == index], ddof=1))


def test_an_id_without_two_clips_takes_the_mean_of_the_others() -> None:
    scale = fit_scale(np.array([1.0, 3.0, 10.0, 14.0, 99.0]), np.array([0, 0, 1, 1, 2]), 4)
    np.testing.assert_allclose(scale.mean, [2, 12, 7, 7])
    np.testing.assert_allclose(scale.std, np.sqrt([2, 8, 4.5, 4.5]))


@pytest.mark.parametrize("scores", [[1.0], [2.0, 2.0], []])
def test_without_any_spread_there_is_no_scale(scores: list[float]) -> None:
    wanted = "two held-out normal clips whose scores differ.*too few, else leave out the network"
    with pytest.raises(EnsembleError, match=wanted):
        fit_scale(np.array(scores), np.zeros(len(scores), int), 2)


def test_a_loud_member_does_not_drown_a_quiet_one() -> None:
    """Each hears half of the faults; the loud one's scores are a thousand times as large."""
    labels = np.repeat([0, 1, 1], 40)
    hears = np.repeat([0, 1, 2], 40)
    quiet = RNG.normal(0, 1, 120) + 3 * (hears == 1)
    loud = 1000 * (RNG.normal(0, 1, 120) + 3 * (hears == 2))
    own, normals = np.zeros(120, int), labels == 0
    z = [fit_scale(s[normals], own[normals], 1).z(s[:, None])[:, 0] for s in (quiet, loud)]
    together = roc_auc_score(labels, np.mean(z, axis=0))
    assert together > 0.9
    assert together > roc_auc_score(labels, quiet + loud) + 0.1


def test_a_study_without_held_out_normals_is_refused_before_it_trains() -> None:
    pack = tone_pack(n_ids=2, n_other=1)
    _require_scale(pack)  # one in holdout, one in val
    bare = resplit(pack, pack.select("val", label=0), "unused")
    with pytest.raises(StudyError, match="fan: confirmation.ensemble needs .* got 1, 1 of the ids"):
        _require_scale(bare)
