import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mimimi_core.metrics import MAX_FPR, AucReport, auc_report, partial_aucs, youden_j

IDS = ("id_00", "id_02", "id_04", "id_06")


def _clips(
    n_normal: int, n_anomaly: int, auc: float, seed: int, n_ids: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, labels, id_index): normal scores per id, anomalous ones shifted to a true AUC."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat([0, 1], [n_normal, n_anomaly]), n_ids)
    scores = rng.standard_normal(len(labels)) + labels * np.sqrt(2) * norm.ppf(auc)
    return scores, labels, np.repeat(np.arange(n_ids), n_normal + n_anomaly)


def _of_one(normal: list[float], anomaly: list[float]) -> AucReport:
    labels = np.repeat([0, 1], [len(normal), len(anomaly)])
    return auc_report(np.array(normal + anomaly), labels, np.zeros(len(labels), int), ["id_00"])


def test_auc_and_pauc_of_each_id_are_scikit_learns_and_the_mean_is_over_ids() -> None:
    scores, labels, ids = _clips(30, 20, 0.8, seed=1)
    scores = np.round(scores, 1)  # with ties
    order = np.random.default_rng(2).permutation(len(scores))
    report = auc_report(scores[order], labels[order], ids[order], IDS)
    aucs = [roc_auc_score(labels[ids == i], scores[ids == i]) for i in range(4)]
    paucs = [roc_auc_score(labels[ids == i], scores[ids == i], max_fpr=0.1) for i in range(4)]
    assert [x.machine_id for x in report.per_id] == list(IDS)
    assert [x.auc for x in report.per_id] == pytest.approx(aucs, abs=1e-12)
    assert [x.pauc for x in report.per_id] == pytest.approx(paucs, abs=1e-12)
    assert report.auc == pytest.approx(np.mean(aucs), abs=1e-12)
    assert report.pauc == pytest.approx(np.mean(paucs), abs=1e-12)
    assert report.worst_auc == pytest.approx(min(aucs), abs=1e-12)
    assert all((x.n_normal, x.n_anomaly) == (30, 20) for x in report.per_id)
    assert report.n_clips == 200
    assert report.without_auc == ()


def test_auc_and_pauc_by_hand() -> None:
    """Ten normals at 0..9; one anomaly beats all, one only the lowest."""
    report = _of_one([float(n) for n in range(10)], [9.5, 0.5])
    assert report.auc == pytest.approx((10 + 1) / 20)
    area, lowest, highest = 0.1 * 0.5, 0.1**2 / 2, 0.1
    assert report.pauc == pytest.approx(0.5 * (1 + (area - lowest) / (highest - lowest)))


@pytest.mark.parametrize(
    ("normal", "anomaly", "auc"),
    [([0.0, 1.0], [2.0], 1.0), ([2.0], [0.0], 0.0), ([1.0], [1.0], 0.5)],
)
def test_extremes_and_ties(normal: list[float], anomaly: list[float], auc: float) -> None:
    assert _of_one(normal, anomaly).auc == auc


def test_scores_of_different_ids_are_never_compared() -> None:
    scores, labels, ids = _clips(15, 15, 0.75, seed=3)
    apart = auc_report(scores + 1000.0 * ids, labels, ids, IDS)
    together = auc_report(scores, labels, ids, IDS)
    for mine, theirs in zip(apart.per_id, together.per_id, strict=True):
        assert (mine.auc, mine.pauc) == (theirs.auc, theirs.pauc)
    assert (apart.auc, apart.pauc, apart.ci) == (together.auc, together.pauc, together.ci)
    pooled = roc_auc_score(labels, scores + 1000.0 * ids)
    assert abs(pooled - together.auc) > 0.1


def test_ids_weigh_the_same_whatever_their_number_of_clips() -> None:
    labels = np.repeat([0, 1, 0, 1], [1, 1, 50, 50])
    ids = np.repeat([0, 0, 1, 1], [1, 1, 50, 50])
    scores = np.concatenate([[1.0, 0.0], np.zeros(50), np.ones(50)])
    assert auc_report(scores, labels, ids, IDS[:2]).auc == 0.5


def test_ids_without_both_labels_are_named_and_left_out() -> None:
    scores, labels, ids = _clips(6, 6, 0.8, seed=4)
    kept = ~((ids == 1) & (labels == 1)) & ~((ids == 2) & (labels == 0)) & (ids != 3)
    report = auc_report(scores[kept], labels[kept], ids[kept], IDS)
    assert report.without_auc == ("id_02", "id_04", "id_06")
    assert [(x.n_normal, x.n_anomaly) for x in report.per_id] == [(6, 6), (6, 0), (0, 6), (0, 0)]
    for x in report.per_id[1:]:
        assert (x.auc, x.pauc, x.ci) == (None, None, None)
    assert report.auc == report.worst_auc == report.per_id[0].auc
    assert report.pauc == report.per_id[0].pauc
    assert report.n_clips == 12


@pytest.mark.parametrize("label", [None, 0, 1])
def test_no_id_with_both_labels_means_no_auc(label: int | None) -> None:
    labels = np.array([] if label is None else [label] * 3, dtype=np.int64)
    report = auc_report(np.zeros(len(labels)), labels, np.zeros(len(labels), int), IDS[:2])
    assert (report.auc, report.pauc, report.ci, report.worst_auc) == (None, None, None, None)
    assert report.without_auc == IDS[:2]
    assert report.n_clips == 0


@pytest.mark.parametrize("n_normal", [1, 2, 7, 40])
@pytest.mark.parametrize("n_anomaly", [1, 3, 25])
@pytest.mark.parametrize("auc", [0.02, 0.5, 0.9, 0.999])
def test_an_interval_holds_its_estimate_and_has_a_width(
    n_normal: int, n_anomaly: int, auc: float
) -> None:
    report = auc_report(*_clips(n_normal, n_anomaly, auc, seed=5), IDS)
    for estimate, ci in [(report.auc, report.ci), *((x.auc, x.ci) for x in report.per_id)]:
        assert estimate is not None
        assert ci is not None
        assert 0 <= ci[0] <= estimate <= ci[1] <= 1
        assert ci[1] - ci[0] > 0.01


@pytest.mark.parametrize("auc", [0.0, 1.0])
def test_one_clip_a_side_proves_nothing(auc: float) -> None:
    report = _of_one([0.0], [1.0 if auc else -1.0])
    for ci in (report.ci, report.per_id[0].ci):
        assert ci is not None
        assert ci[1] - ci[0] > 0.5


@pytest.mark.parametrize("auc", [0.7, 0.95])
def test_more_clips_narrow_the_interval(auc: float) -> None:
    widths = []
    for n in (5, 20, 80, 320):
        report = auc_report(*_clips(n, n, auc, seed=6), IDS, n_bootstrap=400)
        assert report.ci is not None
        widths.append(report.ci[1] - report.ci[0])
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 4  # as one over the root of n: an eighth


def test_the_mean_is_known_better_than_an_id() -> None:
    report = auc_report(*_clips(20, 20, 0.8, seed=7), IDS)
    assert report.ci is not None
    of_ids = [x.ci[1] - x.ci[0] for x in report.per_id if x.ci is not None]
    assert report.ci[1] - report.ci[0] < 0.75 * np.mean(of_ids)


@pytest.mark.parametrize("true_auc", [0.8, 0.95])
def test_the_interval_of_the_mean_covers_the_truth(true_auc: float) -> None:
    """Of 120 draws of 4 ids x (12 + 12) clips; 95 % is asked, 0.88 allows for the draws."""
    hits = 0
    for seed in range(120):
        report = auc_report(*_clips(12, 12, true_auc, seed=1000 + seed), IDS, n_bootstrap=200)
        assert report.ci is not None
        hits += report.ci[0] <= true_auc <= report.ci[1]
    assert 0.88 <= hits / 120 <= 1


def test_the_seed_decides_the_interval() -> None:
    clips = _clips(12, 12, 0.8, seed=8)
    assert auc_report(*clips, IDS, seed=1) == auc_report(*clips, IDS, seed=1)
    first, other = (auc_report(*clips, IDS, seed=seed) for seed in (1, 2))
    assert first.per_id != other.per_id
    assert (first.auc, first.pauc) == (other.auc, other.pauc)


def test_several_networks_on_the_same_clips_have_their_mean() -> None:
    rng = np.random.default_rng(4)
    labels, id_index = np.arange(80) % 2, np.arange(80) // 40
    networks = labels + rng.normal(0, 1.5, (3, 80))
    alone = [auc_report(scores, labels, id_index, ("a", "b")) for scores in networks]
    together = auc_report(networks, labels, id_index, ("a", "b"))
    assert together.auc == pytest.approx(np.mean([report.auc for report in alone]))
    assert together.pauc == pytest.approx(np.mean([report.pauc for report in alone]))
    assert together.n_clips == 80


def test_equal_networks_tell_no_more_of_the_clips_than_one() -> None:
    rng = np.random.default_rng(5)
    labels, id_index = np.arange(60) % 2, np.zeros(60, int)
    scores = labels + rng.normal(0, 1, 60)
    one = auc_report(scores, labels, id_index, ("a",))
    assert auc_report(np.stack([scores] * 5), labels, id_index, ("a",)).ci == one.ci


def test_youdens_j_is_the_widest_gap_of_all_levels() -> None:
    scores, labels, _ = _clips(30, 20, 0.8, seed=9, n_ids=1)
    gaps = [
        (scores[labels == 1] > level).mean() - (scores[labels == 0] > level).mean()
        for level in (-np.inf, *scores)
    ]
    assert youden_j(scores, labels) == pytest.approx(max(gaps), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1], 1.0),
        ([3.0, 2.0, 1.0, 0.0], [0, 0, 1, 1], 0.0),  # calling nothing is as good as any level
        ([1.0, 1.0], [0, 1], 0.0),
        ([1.0, 2.0], [0, 0], None),
        ([], [], None),
    ],
)
def test_youdens_j_by_hand(scores: list[float], labels: list[int], expected: float | None) -> None:
    assert youden_j(np.array(scores), np.array(labels, int)) == expected


def test_aucs_by_id_leave_out_the_ids_without() -> None:
    scores, labels, ids = _clips(6, 6, 0.8, seed=4)
    report = auc_report(scores[ids != 1], labels[ids != 1], ids[ids != 1], IDS)
    assert list(report.aucs) == ["id_00", "id_04", "id_06"]
    assert min(report.aucs.values()) == report.worst_auc


@pytest.mark.parametrize("seed", range(8))
def test_weighted_partial_aucs_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal, anomaly = rng.normal(0, 1, 37), rng.normal(0.7, 1, 23)
    if seed % 2:  # ties, within and between both
        normal, anomaly = normal.round(), anomaly.round()
    times_normal = rng.multinomial(37, np.full(37, 1 / 37), size=20)
    times_anomaly = rng.multinomial(23, np.full(23, 1 / 23), size=20)
    found = partial_aucs(normal, anomaly, times_normal, times_anomaly)
    truth, scores = np.repeat([0, 1], [37, 23]), np.concatenate([normal, anomaly])
    for row, weights in enumerate(np.concatenate([times_normal, times_anomaly], axis=1)):
        kept = weights > 0
        expected = roc_auc_score(
            truth[kept], scores[kept], sample_weight=weights[kept], max_fpr=MAX_FPR
        )
        assert found[row] == pytest.approx(expected)


def test_a_partial_auc_has_an_interval_that_holds_it_and_narrows_with_clips() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (40, 640):
        labels = np.arange(n) % 2
        report = auc_report(labels + rng.normal(0, 1, n), labels, np.zeros(n, int), ("a",))
        assert report.pauc is not None
        assert report.pauc_ci is not None
        assert report.pauc_ci == report.per_id[0].pauc_ci
        low, high = report.pauc_ci
        assert low < report.pauc < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_a_partial_auc_of_two_clips_has_no_interval() -> None:
    report = auc_report(np.array([0.0, 1.0]), np.array([0, 1]), np.zeros(2, int), ("a",))
    assert (report.pauc, report.pauc_ci) == (1.0, None)
