from pathlib import Path

import numpy as np
import pytest

from mimimi_core.analysis import analyse
from mimimi_core.clips import find_clips
from mimimi_core.detector import Detector, DetectorError
from mimimi_core.evaluation import Evaluation, build_detector, describe, evaluate
from mimimi_core.id_table import table
from mimimi_core.metrics import youden_j
from mimimi_core.pack import open_pack, pack_clips
from mimimi_core.scoring import ClipScores, fit_threshold
from mimimi_core.training import Training, held_out_normals
from tests.audio_fixtures import write_mimii
from tests.model_fixtures import CPU, make_detector, make_pack, resplit, tiny_config, tone_pack


@pytest.fixture(scope="module")
def training() -> Training:
    training = Training(tiny_config(), tone_pack(n_other=5), CPU)
    training.run_epoch()
    return training


def judge(training: Training) -> Evaluation:
    return evaluate(build_detector([training]), training.pack)


def test_each_split_is_judged_on_its_own_clips(training: Training) -> None:
    pack, found = training.pack, judge(training)
    assert found.val == training.auc_report("val")
    assert found.test == training.auc_report("test")
    assert found.dev == training.auc_report("val", "test")
    assert (found.val.n_clips, found.test.n_clips, found.dev.n_clips) == (20, 20, 40)
    assert found.test_scores.clips.tolist() == pack.select("test").tolist()
    assert found.test_labels.tolist() == pack.labels[pack.select("test")].tolist()
    assert found.machine_ids == pack.machine_ids
    val = training.scores(pack.select("val"))
    for index, machine_id in enumerate(pack.machine_ids):
        own = val.id_index == index
        expected = youden_j(val.scores[own], pack.labels[val.clips][own])
        assert found.val_youden_j[machine_id] == expected


def test_thresholds_come_from_held_out_normals_alone(training: Training) -> None:
    pack, found = training.pack, judge(training)
    for index, machine_id in enumerate(pack.machine_ids):
        is_held_out = (pack.splits == "holdout") | (pack.splits == "val")
        clips = np.flatnonzero(is_held_out & (pack.labels == 0) & (pack.id_index == index))
        expected = fit_threshold(training.scores(clips).scores)
        threshold = found.thresholds[machine_id]
        assert threshold is not None
        assert expected is not None
        assert threshold.n_normals == 10
        assert threshold.value == pytest.approx(expected.value, rel=1e-4)


def test_without_test_clips_there_is_an_evaluation_without_a_test(training: Training) -> None:
    pack = training.pack
    untested = Training(tiny_config(), resplit(pack, pack.select("test"), "unused"), CPU)
    found = judge(untested)
    assert found.test.auc is None
    assert found.dev == found.val
    assert len(found.test_scores.scores) == 0
    assert describe(found.test, "fan test_auc") == [
        "fan test_auc: none, no trained machine id has both normal and anomalous clips there"
    ]


def test_an_id_without_held_out_normals_has_no_threshold(training: Training) -> None:
    pack, clips = training.pack, held_out_normals(training.pack)
    bare = resplit(pack, clips[pack.id_index[clips] == 0], "unused")
    found = judge(Training(tiny_config(), bare, CPU))
    assert found.thresholds["id_00"] is None
    assert found.thresholds["id_02"] is not None


def test_a_description_names_the_ids_without_an_auc(training: Training) -> None:
    pack = training.pack
    anomalies = np.flatnonzero((pack.splits == "test") & (pack.labels == 1) & (pack.id_index == 1))
    report = judge(Training(tiny_config(), resplit(pack, anomalies, "unused"), CPU)).test
    first, id_00, id_02 = describe(report, "fan test_auc")
    assert report.auc is not None
    assert report.ci is not None
    assert first.startswith(f"fan test_auc {report.auc:.3f} [{report.ci[0]:.3f}, ")
    assert first.endswith("(10 clips)")
    assert "id_00  AUC" in id_00
    assert "5 normal, 5 anomalous" in id_00
    assert "id_02  no AUC, left out of the mean (5 normal, 0 anomalous)" in id_02


def test_an_id_without_training_clips_has_no_auc_and_no_threshold(tmp_path: Path) -> None:
    pack = tone_pack(n_ids=3, n_other=5)
    of_id = np.flatnonzero((pack.splits == "train") & (pack.id_index == 1))
    bare = Training(tiny_config(), resplit(pack, of_id, "holdout"), CPU)
    build_detector([bare]).save(tmp_path)
    detector = Detector.load(tmp_path)
    assert (detector.untrained_ids, detector.judged_ids) == (("id_02",), ("id_00", "id_04"))
    found = evaluate(detector, pack)  # whose splits say nothing of what trained the detector
    for report in (found.val, found.test, found.dev):
        assert report.without_auc == ("id_02",)
        assert report.auc == pytest.approx(np.mean(list(report.aucs.values())))
        assert report.worst_auc == min(report.aucs.values())
    assert found.thresholds["id_02"] is None
    assert [name for name, j in found.val_youden_j.items() if j is None] == ["id_02"]
    line = describe(found.test, "test_auc")[2]
    assert line == "  id_02  no AUC, left out of the mean (5 normal, 5 anomalous; none to train on)"
    missing = [line for line in table(analyse(found)) if line.startswith("id_02: ")]
    assert missing == [
        "id_02: no AUC, left out of the mean, and no threshold: no clip of it trained the model"
    ]


def test_the_detector_scores_as_the_training_did(training: Training) -> None:
    pack, found = training.pack, judge(training)
    detector = build_detector([training])
    assert (detector.machine_type, detector.machine_ids) == ("fan", pack.machine_ids)
    assert detector.thresholds == found.thresholds
    np.testing.assert_allclose(
        training.scores(pack.select("test")).scores, found.test_scores.scores, atol=1e-5
    )


def test_a_saved_detector_is_judged_as_the_training_was(training: Training, tmp_path: Path) -> None:
    expected = judge(training)
    build_detector([training]).save(tmp_path)
    found = evaluate(Detector.load(tmp_path), training.pack)
    assert (found.val, found.test, found.dev) == (expected.val, expected.test, expected.dev)
    assert found.thresholds == expected.thresholds
    assert found.val_youden_j == expected.val_youden_j
    np.testing.assert_array_equal(found.test_labels, expected.test_labels)
    np.testing.assert_allclose(found.test_scores.nll, expected.test_scores.nll, atol=1e-5)


def test_a_clip_that_trained_a_model_is_not_evaluated_once_anomalies_make_it_labelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the MIMII layout as many normals are labelled as there are anomalies."""
    data = write_mimii(tmp_path / "data", n_normal=12, n_abnormal=2)
    first = open_pack(pack_clips(find_clips(data)["valve"], tmp_path / "packs"))
    build_detector([Training(tiny_config(), first, CPU)]).save(tmp_path / "model")
    detector = Detector.load(tmp_path / "model")
    trained = {first.names[i] for i in first.select("train")}
    assert evaluate(detector, first).dev.n_clips == 8
    assert not caplog.text
    write_mimii(data, n_normal=12, n_abnormal=6)
    later = open_pack(pack_clips(find_clips(data)["valve"], tmp_path / "packs"))
    labelled = np.concatenate([later.select("val"), later.select("test")])
    moved = [i for i in labelled if later.names[i] in trained]
    assert moved
    found = evaluate(detector, later)
    assert not set(moved) & set(found.test_scores.clips)
    assert found.dev.n_clips == len(labelled) - len(moved)
    assert f"left out, as they trained this model: {len(moved)}" in caplog.text


def test_a_detector_judges_a_pack_of_some_of_its_ids() -> None:
    """The pack knows id_00 alone, which here is the second id of the network."""
    detector = make_detector(machine_ids=("id_99", "id_00"))
    rng = np.random.default_rng(0)
    clips = [rng.integers(-9000, 9000, 800).astype(np.int16) for _ in range(8)]
    pack = make_pack(clips, [0] * 8, [0, 1] * 4, ["val"] * 4 + ["test"] * 4)
    found = evaluate(detector, pack)
    assert found.machine_ids == ("id_99", "id_00")
    assert found.test.without_auc == ("id_99",)
    assert found.test.auc == found.test.per_id[1].auc
    assert found.test_scores.id_index.tolist() == [1] * 4
    np.testing.assert_allclose(
        found.test_scores.scores, detector.score(clips[4:], "id_00"), atol=1e-5
    )


def test_a_detector_refuses_ids_it_does_not_know() -> None:
    detector = make_detector(machine_ids=("id_00", "id_04"))
    with pytest.raises(DetectorError, match=r"it knows id_00, id_04, not id_02: leave"):
        evaluate(detector, tone_pack(n_ids=2))


def test_several_networks_judge_by_the_mean_of_their_z_scores(
    training: Training, tmp_path: Path
) -> None:
    pack = training.pack
    other = Training(tiny_config(seed=1, lr=1e-2), pack, CPU)
    other.run_epoch()
    build_detector([training, other]).save(tmp_path)
    detector = Detector.load(tmp_path)
    test, normals = pack.select("test"), held_out_normals(pack)
    expected, of_normals, lowest = np.zeros(len(test)), np.zeros(len(normals)), np.zeros(2)
    for one in (training, other):
        known, found = one.scores(normals), one.scores(test)
        for index in range(2):
            own = known.scores[known.id_index == index]
            mine, of_id = found.id_index == index, known.id_index == index
            expected[mine] += (found.scores[mine] - own.mean()) / own.std(ddof=1) / 2
            of_normals[of_id] += own / own.std(ddof=1) / 2
            lowest[index] -= own.mean() / own.std(ddof=1) / 2
    np.testing.assert_allclose(detector.score_pack(pack, test).scores, expected, rtol=1e-4)
    for index, machine_id in enumerate(pack.machine_ids):
        threshold = fit_threshold(of_normals[known.id_index == index])
        assert threshold is not None
        value = threshold.value + lowest[index]
        assert detector.thresholds[machine_id].value == pytest.approx(value, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("n_members", [1, 2, 3])
def test_one_normal_clip_in_ten_exceeds_the_threshold(
    n_members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members of unlike scales that agree in part; 100 held-out normals of an id."""
    pack, rng = tone_pack(n_other=50), np.random.default_rng(2)
    found: dict[int, np.ndarray] = {}

    def draw(n: int) -> np.ndarray:
        scale = np.array([1.0, 30.0, 0.2])[:n_members]
        return scale * (rng.gamma(1.0, size=(n, 1)) + rng.gamma(0.5, size=(n, n_members)))

    def scores(self: Training, clips: np.ndarray) -> ClipScores:
        nll = found[id(self)][:, None].repeat(2, axis=1)
        return ClipScores(clips=clips, id_index=pack.id_index[clips], nll=nll)

    monkeypatch.setattr(Training, "scores", scores)
    trainings = [Training(tiny_config(seed=seed), pack, CPU) for seed in range(n_members)]
    rates = []
    for _ in range(10):
        known = draw(len(held_out_normals(pack)))
        found |= {id(t): known[:, i] for i, t in enumerate(trainings)}
        detector = build_detector(trainings)
        fresh = draw(2000)
        z = [
            fresh[:, i]
            if member.scale is None
            else member.scale.z(fresh[:, i, None].repeat(2, axis=1))[:, 0]
            for i, member in enumerate(detector.members)
        ]
        threshold = detector.thresholds["id_00"]
        assert threshold is not None
        rates.append((np.mean(z, axis=0) > threshold.value).mean())
    assert np.mean(rates) == pytest.approx(0.1, abs=0.025)


def test_several_networks_need_a_scale_each(training: Training) -> None:
    (member,) = build_detector([training]).members
    with pytest.raises(ValueError, match="several that each have a scale"):
        Detector(members=[member, member], machine_type="fan", machine_ids=("a",), thresholds={})
