"""The paired test against DeLong's by double loops, and its error rates where clips are few."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mimimi_core.comparison import Comparison, bootstrap_interval, compare_aucs

Clips = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
MARGIN = 0.01


def draw(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    candidate: float,
    champion: float,
    correlation: float = 0.9,
) -> Clips:
    """(candidate, champion, labels, id_index) of (normals, anomalies, ids), with true AUCs."""
    n_normal, n_anomaly, n_ids = shape
    labels = np.tile(np.repeat([0, 1], [n_normal, n_anomaly]), n_ids)
    ids = np.repeat(np.arange(n_ids), n_normal + n_anomaly)
    clip, *own = rng.standard_normal((3, len(labels)))
    scores = [
        np.sqrt(2) * norm.ppf(auc) * labels
        + np.sqrt(correlation) * clip
        + np.sqrt(1 - correlation) * noise
        for auc, noise in zip((candidate, champion), own, strict=True)
    ]
    return scores[0], scores[1], labels, ids


def of_one(
    normal: tuple[list[float], list[float]], anomaly: tuple[list[float], list[float]]
) -> Clips:
    """One id from (candidate's, champion's) scores of its normals and of its anomalies."""
    labels = np.repeat([0, 1], [len(normal[0]), len(anomaly[0])])
    candidate, champion = (np.array(n + a) for n, a in zip(normal, anomaly, strict=True))
    return candidate, champion, labels, np.zeros(len(labels), int)


def compare(clips: Clips, margin: float = MARGIN) -> Comparison:
    found = compare_aucs(*clips, margin)
    assert found is not None
    return found


def plain_delong(candidate: np.ndarray, champion: np.ndarray, labels: np.ndarray) -> tuple:
    """(difference, S10, S01) of DeLong et al. 1988, by their formulas, for the contrast (1, -1)."""
    normal, anomaly = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)

    def kernel(scores: np.ndarray, i: int, j: int) -> float:
        return 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0

    v10 = [
        [sum(kernel(s, i, j) for j in normal) / len(normal) for i in anomaly]
        for s in (candidate, champion)
    ]
    v01 = [
        [sum(kernel(s, i, j) for i in anomaly) / len(anomaly) for j in normal]
        for s in (candidate, champion)
    ]
    contrast = np.array([1.0, -1.0])
    s10, s01 = (contrast @ np.cov(v) @ contrast for v in (v10, v01))
    return float(np.mean(v10[0]) - np.mean(v10[1])), float(s10), float(s01)


@pytest.mark.parametrize("decimals", [1, 8], ids=["ties", "no ties"])
@pytest.mark.parametrize("null", [0.0, -0.07])
def test_the_test_is_delongs_with_its_variance_about_the_null(decimals: int, null: float) -> None:
    clips = draw(np.random.default_rng(3), (17, 11, 3), 0.9, 0.75, 0.5)
    candidate, champion = (np.round(scores, decimals) for scores in clips[:2])
    _, _, labels, ids = clips
    differences, variance = [], 0.0
    for index in range(3):
        of_id = ids == index
        difference, s10, s01 = plain_delong(candidate[of_id], champion[of_id], labels[of_id])
        differences.append(difference)
        for n, s in ((11, s10), (17, s01)):
            variance += (s * (n - 1) / n + (difference - null) ** 2) / n / 9
    expected = norm.sf((np.mean(differences) - null) / np.sqrt(variance))
    found = compare((candidate, champion, labels, ids), margin=-null or MARGIN)
    assert found.difference == pytest.approx(np.mean(differences), abs=1e-12)
    assert (found.p_no_worse if null else found.p_better) == pytest.approx(expected, rel=1e-9)


def test_the_difference_is_that_of_the_means_over_ids() -> None:
    clips = draw(np.random.default_rng(4), (6, 9, 4), 0.8, 0.7)
    aucs = [
        np.mean([roc_auc_score(clips[2][clips[3] == i], s[clips[3] == i]) for i in range(4)])
        for s in clips[:2]
    ]
    found = compare(clips)
    assert found.difference == pytest.approx(aucs[0] - aucs[1], abs=1e-12)
    assert found.n_clips == 60


def test_only_ranks_within_an_id_matter() -> None:
    candidate, champion, labels, ids = draw(np.random.default_rng(5), (9, 9, 2), 0.8, 0.7)
    order = np.random.default_rng(6).permutation(len(labels))
    scaled = (np.exp(candidate) + 100 * ids, champion**3 - ids, labels, ids)
    shuffled = tuple(values[order] for values in scaled)
    assert compare(shuffled) == compare((candidate, champion, labels, ids))  # type: ignore[arg-type]


def test_swapping_the_two_turns_everything_round() -> None:
    candidate, champion, labels, ids = draw(np.random.default_rng(7), (20, 15, 2), 0.85, 0.8)
    there, back = (
        compare((a, b, labels, ids)) for a, b in ((candidate, champion), (champion, candidate))
    )
    assert back.difference == pytest.approx(-there.difference)
    assert back.ci == pytest.approx((-there.ci[1], -there.ci[0]), abs=2e-4)
    assert back.p_better == pytest.approx(1 - there.p_better)


def test_ids_without_both_labels_are_left_out() -> None:
    candidate, champion, labels, ids = draw(np.random.default_rng(8), (6, 6, 3), 0.8, 0.7)
    kept = ~((ids == 1) & (labels == 1)) & (ids != 2)
    some = tuple(values[kept] for values in (candidate, champion, labels, ids))
    first = tuple(values[ids == 0] for values in (candidate, champion, labels, ids))
    assert compare(some) == compare(first)  # type: ignore[arg-type]
    normals = labels == 0
    assert (
        compare_aucs(candidate[normals], champion[normals], labels[normals], ids[normals], 0.1)
        is None
    )


def test_two_clips_a_side_prove_nothing() -> None:
    """The plain variance is 0 here: DeLong's test would be certain."""
    found = compare(of_one(([0, 1], [0, 3]), ([2, 3], [1, 2])))
    assert found.difference == 0.5
    assert found.p_better > 0.1
    assert found.ci[0] < 0 < found.ci[1]


def test_a_detector_is_not_better_than_itself_and_needs_many_clips_to_be_no_worse() -> None:
    for n, is_enough in ((5, False), (50, False), (150, True)):
        candidate, _, labels, ids = draw(np.random.default_rng(9), (n, n, 4), 0.9, 0.9)
        found = compare((candidate, candidate, labels, ids))
        assert (found.difference, found.p_better) == (0.0, 0.5)
        assert found.ci[0] < 0 < found.ci[1]
        assert (found.p_no_worse <= 0.05) is is_enough


def test_interval_and_p_value_agree() -> None:
    rng = np.random.default_rng(10)
    for shape, gain in product([(3, 3, 1), (10, 20, 2), (60, 40, 4)], [0.0, 0.1, -0.1]):
        found = compare(draw(rng, shape, 0.8 + gain, 0.8))
        assert found.ci[0] <= found.difference <= found.ci[1]
        assert (found.ci[0] > 0) == (found.p_better < 0.025)
        assert (found.ci[1] < 0) == (found.p_better > 0.975)
        assert found.p_no_worse <= found.p_better


def test_bootstrap_agrees_where_clips_are_many() -> None:
    clips = draw(np.random.default_rng(11), (150, 150, 2), 0.85, 0.8, 0.7)
    assert bootstrap_interval(*clips) == pytest.approx(compare(clips).ci, abs=0.006)
    assert bootstrap_interval(*clips, seed=1) == bootstrap_interval(*clips, seed=1)


def rate(shape: tuple[int, int, int], gain: float, auc: float, field: str, n: int = 150) -> float:
    """Share of drawn comparisons whose p-value is at most 0.05."""
    rng = np.random.default_rng(12)
    hits = [getattr(compare(draw(rng, shape, auc + gain, auc)), field) <= 0.05 for _ in range(n)]
    return float(np.mean(hits))


@pytest.mark.parametrize("auc", [0.6, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 2, 4), (5, 5, 4), (12, 12, 4), (50, 50, 4)])
def test_equals_are_rarely_called_better(shape: tuple[int, int, int], auc: float) -> None:
    """0.05 is asked; 0.1 allows for 150 draws."""
    assert rate(shape, 0.0, auc, "p_better") < 0.1


@pytest.mark.parametrize("auc", [0.7, 0.95])
@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 2, 4), (5, 5, 4), (12, 12, 4), (50, 50, 4)])
def test_a_loss_of_the_margin_is_rarely_called_none(
    shape: tuple[int, int, int], auc: float
) -> None:
    assert rate(shape, -MARGIN, auc, "p_no_worse") < 0.1


def test_a_gain_is_found_where_clips_are_many() -> None:
    assert rate((50, 50, 4), 0.03, 0.88, "p_better") > 0.9
    assert rate((100, 400, 4), 0.0, 0.95, "p_no_worse") > 0.6
