"""Counts and shares against scikit-learn; None where there is nothing to divide by."""

import dataclasses
import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from mimimi_core.analysis import Decisions, analyse, confusion_of_ids, decisions_at
from mimimi_core.evaluation import Evaluation
from mimimi_core.metrics import auc_report, youden_j
from mimimi_core.scoring import ClipScores, Threshold

IDS = ("id_00", "id_02", "id_04")


def evaluation(
    scores: np.ndarray,
    labels: np.ndarray,
    id_index: np.ndarray,
    levels: list[float | None],
    untrained: tuple[str, ...] = (),
) -> Evaluation:
    """Of a test with these scores; val and test have the same clips."""
    nll = np.full((len(scores), len(IDS)), 9.0)
    nll[np.arange(len(scores)), id_index] = scores
    report = auc_report(scores, labels, id_index, IDS, untrained=untrained)
    return Evaluation(
        val=report,
        test=report,
        dev=report,
        test_scores=ClipScores(clips=np.arange(len(scores)), id_index=id_index, nll=nll),
        test_labels=labels,
        thresholds={
            name: None
            if level is None
            else Threshold(value=level, false_alarm_rate=0.1, n_normals=7)
            for name, level in zip(IDS, levels, strict=True)
        },
        val_youden_j={
            name: youden_j(scores[id_index == i], labels[id_index == i])
            for i, name in enumerate(IDS)
        },
        kinds=("deep_encoder",),
    )


def clips(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and ids of 3 x 40 clips in disorder."""
    rng = np.random.default_rng(seed)
    labels, id_index = rng.integers(0, 2, 120), rng.permutation(np.repeat(np.arange(3), 40))
    return np.round(rng.normal(size=120) + labels, 1), labels, id_index


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", [-9.0, -0.5, 0.4, 1.2, 9.0])
def test_counts_and_shares_are_scikit_learns(seed: int, level: float) -> None:
    scores, labels, _ = clips(seed)
    found, called = decisions_at(level, scores, labels), scores > level
    np.testing.assert_array_equal(found.matrix, confusion_matrix(labels, called, labels=[0, 1]))
    assert (found.n_normal, found.n_anomaly) == ((labels == 0).sum(), (labels == 1).sum())
    none = {"zero_division": math.nan}
    for share, expected in (
        (found.precision, precision_score(labels, called, **none)),
        (found.recall, recall_score(labels, called, **none)),
        (found.f1, f1_score(labels, called, **none)),
        (found.false_alarm_rate, recall_score(1 - labels, called, **none)),
    ):
        if share is None:
            assert math.isnan(expected)
        else:
            assert share == pytest.approx(expected, abs=1e-12)


def test_a_score_at_the_level_is_no_alarm() -> None:
    assert decisions_at(1.0, np.array([1.0]), np.array([1])).false_negatives == 1


@pytest.mark.parametrize(
    ("counts", "shares"),  # TP, FP, TN, FN; precision, recall, F1, false alarm rate
    [
        ((0, 0, 0, 0), (None, None, None, None)),
        ((0, 0, 4, 0), (None, None, None, 0.0)),
        ((0, 1, 3, 0), (0.0, None, None, 0.25)),
        ((0, 0, 4, 2), (None, 0.0, 0.0, 0.0)),
        ((2, 0, 0, 0), (1.0, 1.0, 1.0, None)),
        ((3, 1, 4, 2), (0.75, 0.6, 2 / 3, 0.2)),
    ],
)
def test_what_cannot_be_computed_is_none(
    counts: tuple[int, int, int, int], shares: tuple[float | None, ...]
) -> None:
    names = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    found = Decisions(**dict(zip(names, counts, strict=True)))
    assert (found.precision, found.recall, found.f1, found.false_alarm_rate) == pytest.approx(
        shares
    )


def test_each_id_is_judged_by_its_own_threshold() -> None:
    scores, labels, id_index = clips(seed=7)
    levels = [0.2, 0.9, -0.3]
    found = analyse(evaluation(scores, labels, id_index, list(levels)))
    called = scores > np.array(levels)[id_index]
    for i, x in enumerate(found.per_id):
        own = id_index == i
        assert x.decisions is not None
        np.testing.assert_array_equal(
            x.decisions.matrix, confusion_matrix(labels[own], called[own], labels=[0, 1])
        )
        assert x.auc == found.report.per_id[i]
    assert found.overall is not None
    np.testing.assert_array_equal(found.overall.matrix, confusion_matrix(labels, called))


def test_an_id_without_a_threshold_has_no_decisions_and_does_not_count() -> None:
    scores, labels, id_index = clips(seed=8)
    found = analyse(evaluation(scores, labels, id_index, [0.2, None, 0.4]))
    assert found.per_id[1].decisions is None
    assert found.per_id[1].auc.auc is not None
    judged = id_index != 1
    called = scores[judged] > np.array([0.2, 0.0, 0.4])[id_index[judged]]
    assert found.overall is not None
    np.testing.assert_array_equal(found.overall.matrix, confusion_matrix(labels[judged], called))


def test_without_any_threshold_there_are_no_decisions() -> None:
    found = analyse(evaluation(*clips(seed=9), [None, None, None]))
    assert found.overall is None


def test_confusion_of_ids_is_scikit_learns_and_of_normal_clips() -> None:
    rng = np.random.default_rng(0)
    nll, id_index = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    counts = confusion_of_ids(nll, id_index)
    np.testing.assert_array_equal(counts, confusion_matrix(id_index, nll.argmin(axis=1)))
    scores, labels, of_id = clips(seed=3)
    found = analyse(evaluation(scores, labels, of_id, [None, None, None])).id_confusion
    assert found is not None
    expected = np.bincount(of_id[labels == 0])  # 9 under every other id: each is named right
    np.testing.assert_array_equal(found, np.diag(expected))


def test_an_id_without_training_clips_cannot_be_named_and_does_not_count() -> None:
    scores, labels, of_id = clips(seed=3)
    judged = evaluation(scores, labels, of_id, [None, None, None], untrained=("id_02",))
    found = analyse(judged).id_confusion
    assert found is not None
    expected = np.bincount(of_id[labels == 0]) * [1, 0, 1]
    np.testing.assert_array_equal(found, np.diag(expected))


def test_a_system_without_ids_names_none() -> None:
    judged = evaluation(*clips(seed=3), [None, None, None])
    for kinds, names_ids in (
        (("gmade",), False),
        (("gmade", "autoencoder"), False),  # whose mean z-scores differ from id to id
        (("gmade", "mahalanobis"), True),
    ):
        found = analyse(dataclasses.replace(judged, kinds=kinds))
        assert (found.id_confusion is not None) is names_ids


def test_no_clips_are_named_nothing() -> None:
    np.testing.assert_array_equal(
        confusion_of_ids(np.empty((0, 2)), np.zeros(0, int)), np.zeros((2, 2))
    )
