"""Whether a candidate replaces a champion: the rule, on real detectors and a real registry."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mimimi_core.comparison import Comparison
from mimimi_core.config import FrontendConfig
from mimimi_core.costs import gmac_per_s
from mimimi_core.detector import Detector
from mimimi_core.pack import Pack
from mimimi_core.scoring import ClipScores
from search.champions import Candidate, Decision, compare_with_champion, judge
from search.config import PromotionConfig
from search.registry import Registry
from search.study import _settings
from search.tracking import Tracker
from tests.doubles import space_file
from tests.model_fixtures import FRONTEND, NETWORK, make_detector, tone_pack

pytestmark = pytest.mark.integration

SETTINGS = PromotionConfig()
PACK = tone_pack(n_ids=3, n_train=1, n_other=12)
TEST = PACK.select("test")


def candidate_of(scores: np.ndarray, detector: Detector | None = None) -> Candidate:
    """A candidate that gave the test clips these scores."""
    nll = np.repeat(scores[:, None], len(PACK.machine_ids), axis=1)
    found = ClipScores(clips=TEST, id_index=PACK.id_index[TEST], nll=nll)
    return Candidate(detector or make_detector(), PACK, found)


PERFECT = PACK.labels[TEST].astype(float)


@pytest.fixture
def compare(sqlite_uri: str, tmp_path: Path) -> Callable[..., Decision]:
    """Registers a champion and compares a candidate of the same machine type with it."""
    registry, machine_type = Registry(sqlite_uri), PACK.machine_type

    def compare(
        champion: Detector,
        candidate: Candidate,
        settings: PromotionConfig = SETTINGS,
        damage: Callable[[Path], object] = lambda weights: None,
    ) -> Decision:
        champion.save(tmp_path / "champion")
        run_id = Tracker(sqlite_uri, tmp_path / "artifacts", "s").parent_run(machine_type)
        version = registry.register(machine_type, tmp_path / "champion", run_id, {}, {})
        (weights,) = (tmp_path / "artifacts").rglob("*.safetensors")
        damage(weights)
        return compare_with_champion(registry, version, candidate, settings)

    return compare


def test_a_better_candidate_is_promoted(compare: Callable[..., Decision]) -> None:
    decision = compare(make_detector(), candidate_of(PERFECT))
    assert decision.promoted
    assert decision.reason.startswith("better, test_auc +0.")
    assert "on the same 72 clips" in decision.reason
    tags = decision.tags()
    assert tags["against"] == "version 1"
    assert float(tags["p_value"]) <= SETTINGS.level
    assert tags["difference"] in tags["decision"]
    assert "[" in tags["difference"]


def test_an_equal_one_is_kept_out(compare: Callable[..., Decision]) -> None:
    champion = make_detector()
    decision = compare(champion, candidate_of(champion.score_pack(PACK, TEST).scores))
    assert not decision.promoted
    assert decision.reason.startswith("not better, test_auc +0.000 [-0.")
    assert "1 times as cheap, 2 times is asked" in decision.reason


def test_a_cheaper_one_that_is_no_worse_is_promoted(compare: Callable[..., Decision]) -> None:
    champion = make_detector(dataclasses.replace(NETWORK, channels=8))
    candidate = candidate_of(champion.score_pack(PACK, TEST).scores, make_detector())
    tolerant = PromotionConfig(margin=0.1)
    decision = compare(champion, candidate, tolerant)
    assert decision.promoted
    assert decision.reason.startswith("no worse and ")
    assert decision.comparison is not None
    assert decision.comparison.p_better == 0.5


def comparison(p_better: float, p_no_worse: float) -> Comparison:
    return Comparison(
        difference=0.01, ci=(-0.01, 0.03), p_better=p_better, p_no_worse=p_no_worse, n_clips=96
    )


@pytest.mark.parametrize(
    ("p_better", "p_no_worse", "cheaper", "promoted", "reason"),
    [
        (0.05, 0.01, 0.1, True, "better, test_auc +0.010 [-0.010, +0.030] on the same 96 clips"),
        (0.06, 0.01, 1.9, False, "1.9 times as cheap, 2 times is asked"),
        (0.06, 0.01, 2.0, True, "no worse and 2 times as cheap"),
        (0.06, 0.06, 9.0, False, "9 times as cheap, but it may lose 0.01, p 0.060 > 0.05"),
    ],
)
def test_the_rule(
    p_better: float, p_no_worse: float, cheaper: float, promoted: bool, reason: str
) -> None:
    found = judge(comparison(p_better, p_no_worse), cheaper, SETTINGS)
    assert found[0] is promoted
    assert reason in found[1]


def test_cost_is_per_second_of_sound() -> None:
    """A window of twice as many frames hears twice as long: padding aside, the same cost."""

    def work(frontend: FrontendConfig) -> float:
        detector = make_detector(frontend=frontend)
        return gmac_per_s(detector.members[0].config, len(detector.machine_ids))

    longer = dataclasses.replace(FRONTEND, n_frames=64)
    twice = dataclasses.replace(FRONTEND, n_frames=128)
    costs = [work(frontend) for frontend in (longer, twice)]
    assert costs[1] == pytest.approx(costs[0], rel=0.1)
    overlapping = dataclasses.replace(longer, hop=FRONTEND.hop // 2)
    assert work(overlapping) == pytest.approx(2 * costs[0])


def test_another_rule_continues_the_same_study() -> None:
    strict = space_file(promotion={"level": 0.01, "margin": 0.005, "cheaper": 3.0})
    assert strict.promotion != space_file().promotion
    assert _settings(strict) == _settings(space_file())


# -- champions that cannot be compared --------------------------------------------------------


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (
            {"machine_ids": ("id_00", "id_08")},
            "also judges id_08, of which there is no training clip",
        ),
        (
            {"frontend": dataclasses.replace(FRONTEND, sample_rate=8000)},
            "hears 8000 Hz, these clips have 16000 Hz",
        ),
    ],
)
def test_a_champion_of_other_clips_stays(
    compare: Callable[..., Decision], champion: dict, reason: str
) -> None:
    decision = compare(make_detector(**champion), candidate_of(PERFECT))
    assert (decision.promoted, decision.comparison) == (False, None)
    assert decision.reason == f"version 1 {reason}"
    assert decision.tags()["p_value"] == "none"


def test_ids_that_only_the_candidate_knows_are_left_out(compare: Callable[..., Decision]) -> None:
    decision = compare(make_detector(machine_ids=("id_00", "id_02")), candidate_of(PERFECT))
    assert decision.promoted
    assert "on the same 48 clips" in decision.reason


def test_ids_that_the_champion_was_not_trained_on_are_left_out(
    compare: Callable[..., Decision],
) -> None:
    champion = make_detector()
    champion.untrained_ids = ("id_04",)
    decision = compare(champion, candidate_of(PERFECT))
    assert "on the same 48 clips" in decision.reason


def test_a_candidate_that_an_id_did_not_train_does_not_replace_one_that_it_did(
    compare: Callable[..., Decision],
) -> None:
    candidate = make_detector()
    candidate.untrained_ids = ("id_04",)
    decision = compare(make_detector(), candidate_of(PERFECT, candidate))
    assert not decision.promoted
    assert decision.reason == "version 1 also judges id_04, of which there is no training clip"


def test_clips_that_trained_the_champion_count_for_neither(
    compare: Callable[..., Decision],
) -> None:
    champion = make_detector()
    champion.trained_on = PACK.digests[PACK.select("test", label=0)[:6]]
    decision = compare(champion, candidate_of(PERFECT))
    assert decision.comparison is not None
    assert decision.comparison.n_clips == 72 - 6
    assert "on the same 66 clips" in decision.reason
    assert decision.reason.endswith("; test clips left out as they trained it: 6)")


def test_a_champion_that_was_trained_on_every_normal_test_clip_stays(
    compare: Callable[..., Decision],
) -> None:
    champion = make_detector()
    champion.trained_on = PACK.digests[PACK.select("test", label=0)]
    decision = compare(champion, candidate_of(PERFECT))
    assert not decision.promoted
    assert decision.reason == (
        "no machine id has both labels among the test clips version 1 knows; "
        "test clips left out as they trained it: 36"
    )


def test_a_champion_that_cannot_be_read_stays(compare: Callable[..., Decision]) -> None:
    decision = compare(
        make_detector(), candidate_of(PERFECT), damage=lambda weights: weights.write_bytes(b"?")
    )
    assert not decision.promoted
    assert decision.reason.startswith("version 1 cannot be read: ")
    assert "\n" not in decision.reason


def test_a_champion_whose_files_are_gone_stays(compare: Callable[..., Decision]) -> None:
    decision = compare(make_detector(), candidate_of(PERFECT), damage=Path.unlink)
    assert not decision.promoted
    assert decision.reason.startswith("version 1 cannot be read: ")


def test_a_champion_without_finite_scores_stays(compare: Callable[..., Decision]) -> None:
    champion = make_detector()
    torch.nn.init.constant_(champion.members[0].network.total_conv.bias, float("nan"))
    decision = compare(champion, candidate_of(PERFECT))
    assert decision.reason == "version 1 gives scores that are not finite"
    assert not decision.promoted


def test_without_anomalies_nobody_is_promoted(compare: Callable[..., Decision]) -> None:
    pack: Pack = dataclasses.replace(PACK, labels=np.zeros_like(PACK.labels))
    candidate = dataclasses.replace(candidate_of(PERFECT), pack=pack)
    decision = compare(make_detector(), candidate)
    assert not decision.promoted
    assert "no machine id has both labels" in decision.reason
