"""Who becomes champion: the rule, on real detectors and a real registry; races; the command."""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from mimimi_core.comparison import Comparison
from mimimi_core.config import FrontendConfig
from mimimi_core.costs import gmac_per_s
from mimimi_core.detector import Detector
from mimimi_core.pack import Pack
from mimimi_core.scoring import ClipScores
from search import promote
from search.champions import (
    Candidate,
    Decision,
    challenge,
    compare_with_champion,
    judge,
)
from search.config import PromotionConfig
from search.registry import Registry, model_name
from search.study import _settings
from search.tracking import Tracker, check
from tests.doubles import space_file
from tests.model_fixtures import FRONTEND, NETWORK, make_detector, tone_pack

pytestmark = [
    pytest.mark.integration,
    # MLflow 3.17 on SQLAlchemy 2.1: MLflow's own models use a deprecated loader strategy.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

SETTINGS = PromotionConfig()
NUMBERS = itertools.count()
PACK = tone_pack(n_ids=3, n_train=1, n_other=12)
TEST = PACK.select("test")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    check(uri)
    return uri


@pytest.fixture(scope="module")
def registry(uri: str) -> Registry:
    return Registry(uri)


@pytest.fixture
def machine_type() -> str:
    return f"type{next(NUMBERS)}"  # the store is shared by all tests


@pytest.fixture
def add_versions(uri: str, machine_type: str, tmp_path: Path) -> Callable[[int], list[int]]:
    """Registers versions that have no weights."""
    client, name = MlflowClient(uri), model_name(machine_type)

    def add(n: int) -> list[int]:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        return [
            int(client.create_model_version(name, tmp_path.as_uri(), tags={"study": "s"}).version)
            for _ in range(n)
        ]

    return add


def candidate_of(scores: np.ndarray, detector: Detector | None = None) -> Candidate:
    """A candidate that gave the test clips these scores."""
    nll = np.repeat(scores[:, None], len(PACK.machine_ids), axis=1)
    found = ClipScores(clips=TEST, id_index=PACK.id_index[TEST], nll=nll)
    return Candidate(detector or make_detector(), PACK, found)


PERFECT = PACK.labels[TEST].astype(float)


@pytest.fixture
def compare(
    registry: Registry, uri: str, machine_type: str, tmp_path: Path
) -> Callable[..., Decision]:
    """Registers a champion and compares a candidate of the same machine type with it."""

    def compare(
        champion: Detector,
        candidate: Candidate,
        settings: PromotionConfig = SETTINGS,
        damage: Callable[[Path], object] = lambda weights: None,
    ) -> Decision:
        champion.save(tmp_path / "champion")
        run_id = Tracker(uri, tmp_path / "artifacts", machine_type).parent_run(machine_type)
        version = registry.register(machine_type, tmp_path / "champion", run_id, {}, {})
        (weights,) = (tmp_path / "artifacts").rglob("*.safetensors")
        damage(weights)
        pack = dataclasses.replace(candidate.pack, machine_type=machine_type)
        candidate = dataclasses.replace(candidate, pack=pack)
        return compare_with_champion(registry, version, candidate, settings)

    return compare


# -- the rule ---------------------------------------------------------------------------------


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


# -- races ------------------------------------------------------------------------------------


def promote_against(rival: int) -> Decision:
    return Decision(promoted=True, reason="better", against=rival)


def test_the_first_version_meets_nobody(
    registry: Registry, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    add_versions(1)
    decision = challenge(registry, machine_type, 1, pytest.fail)
    assert decision == Decision(promoted=True, reason="there was no champion")
    number, tags = registry.champion(machine_type) or pytest.fail("no champion")
    assert number == 1
    assert tags["decision"] == "promoted: there was no champion"
    assert (tags["against"], tags["difference"], tags["p_value"]) == ("none", "none", "none")


def test_a_kept_version_is_recorded_too(
    registry: Registry, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    add_versions(2)
    registry.set_champion(machine_type, 1)
    kept = Decision(
        promoted=False, reason="why", against=1, comparison=comparison(p_better=0.3, p_no_worse=0.1)
    )
    assert challenge(registry, machine_type, 2, lambda rival: kept) == kept
    assert registry.champion(machine_type)[0] == 1
    tags = registry.versions(machine_type)[1].tags
    assert tags["decision"] == "kept: why"
    assert tags["against"] == "version 1"
    assert tags["difference"] == "+0.010 [-0.010, +0.030]"
    assert (tags["p_value"], tags["p_value_no_worse"]) == ("0.3000", "0.1000")


def test_a_call_that_was_killed_after_promoting_finds_its_decision(
    registry: Registry, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    add_versions(2)
    registry.set_champion(machine_type, 1)
    challenge(registry, machine_type, 2, promote_against)
    again = challenge(registry, machine_type, 2, pytest.fail)
    assert (again.promoted, again.reason) == (True, "better")


@pytest.mark.parametrize("has_champion", [True, False])
def test_of_two_that_promote_at_once_the_second_faces_the_first(
    uri: str, machine_type: str, add_versions: Callable[[int], list[int]], has_champion: bool
) -> None:
    """Both have read the old champion before either moves the alias."""
    add_versions(3)
    both_compared = threading.Barrier(2)
    faced: dict[int, list[int | None]] = {2: [], 3: []}

    class Watched(Registry):
        def set_tags(self, machine_type: str, version: int, tags: dict) -> None:  # type: ignore[override]
            if not any(len(rivals) == 2 for rivals in faced.values()):
                faced[version].append(None if tags["against"] == "none" else 1)
                both_compared.wait(20)
            super().set_tags(machine_type, version, tags)

    def run(version: int) -> Decision:
        def compare(rival: int) -> Decision:
            if rival != 1:
                faced[version].append(rival)
            return promote_against(rival)

        return challenge(Watched(uri), machine_type, version, compare)

    registry = Registry(uri)
    if has_champion:
        registry.set_champion(machine_type, 1)
    with ThreadPoolExecutor(2) as pool:
        decisions = dict(zip((2, 3), pool.map(run, (2, 3)), strict=True))
    last = registry.champion(machine_type)[0]
    first = 5 - last
    assert faced[first] == [1 if has_champion else None]
    assert faced[last] == [1 if has_champion else None, first]
    assert decisions[last].against == first
    assert registry.versions(machine_type)[last - 1].tags["against"] == f"version {first}"


def test_many_at_once_leave_an_unbroken_chain(
    uri: str, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    """Every promoted version faced the champion that it replaced: no promotion is lost."""
    versions = add_versions(13)
    Registry(uri).set_champion(machine_type, 1)

    def run(mine: list[int]) -> None:
        registry = Registry(uri)
        for version in mine:
            challenge(registry, machine_type, version, promote_against)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, [versions[n::3] for n in (1, 2, 3)]))
    registry = Registry(uri)
    tags = {v.number: v.tags for v in registry.versions(machine_type)}
    chain = [registry.champion(machine_type)[0]]
    while chain[-1] != 1:
        chain.append(int(tags[chain[-1]]["against"].removeprefix("version ")))
    assert sorted(chain) == versions


def test_the_alias_moves_only_from_whom_it_is_expected_at(
    registry: Registry, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    add_versions(3)
    assert not registry.replace_champion(machine_type, expected=1, version=2)
    assert registry.champion(machine_type) is None
    assert registry.replace_champion(machine_type, expected=None, version=1)
    assert not registry.replace_champion(machine_type, expected=None, version=2)
    assert registry.replace_champion(machine_type, expected=1, version=3)
    assert registry.champion(machine_type)[0] == 3


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def table(
    uri: str, machine_type: str, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., list[str]]]:
    """Runs the command; its lines without the header."""

    def run(*args: str) -> list[str]:
        argv = ["--machine-type", machine_type, "--tracking-uri", uri, *args]
        assert promote.main(argv) == 0
        header, *lines = capsys.readouterr().out.splitlines()
        assert header.split()[:2] == ["version", "when"]
        return lines

    return run


def test_history_and_rollback(
    registry: Registry,
    machine_type: str,
    add_versions: Callable[[int], list[int]],
    table: Callable[..., list[str]],
) -> None:
    add_versions(4)
    registry.set_tags(machine_type, 1, {"trial": "7", "test_auc": "0.912 [0.8, 0.9] (96 clips)"})
    challenge(registry, machine_type, 1, pytest.fail)
    challenge(registry, machine_type, 2, promote_against)
    challenge(registry, machine_type, 3, lambda rival: Decision(promoted=False, reason="not so"))
    lines = table()
    assert [line[0] for line in lines] == [" ", "*", " ", " "]
    assert "s/7" in lines[0]
    assert "0.912 [0.8, 0.9] (96 clips)  promoted  there was no champion" in lines[0]
    assert lines[1].split()[-2:] == ["promoted", "better"]
    assert lines[2].split()[-3:] == ["kept", "not", "so"]
    assert lines[3].split()[-2:] == ["none", "undecided"]

    lines = table("--rollback", "1", "--reason", "false alarms at night")
    assert [line[0] for line in lines] == ["*", " ", " ", " ", "*"]
    assert lines[4].endswith("rolled back  from version 2: false alarms at night")
    assert registry.champion(machine_type)[0] == 1
    table("--rollback", "2", "--reason", "it was the microphone")
    assert registry.champion(machine_type)[0] == 2
    assert len(registry.versions(machine_type)) == 4
    assert registry.versions(machine_type)[0].tags["decision"] == "promoted: there was no champion"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rollback", "3", "--reason", "x"], "must be a version of {}: 1, 2, got 3"),
        (["--rollback", "1", "--reason", "x"], "--rollback 1: it is the champion of {} already"),
        (["--rollback", "2"], "--rollback VERSION needs --reason TEXT"),
        (["--rollback", "2", "--reason", " "], "--rollback VERSION needs --reason TEXT"),
        (["--reason", "x"], "--rollback VERSION needs --reason TEXT"),
        (["--machine-type", "lathe"], "no model of machine type 'lathe' at sqlite:///"),
        (["--tracking-uri", "sqlite:////nowhere/x.db"], "there is no file /nowhere/x.db"),
        (["--tracking-uri", "mlruns"], "tracking URI must start with"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    uri: str,
    registry: Registry,
    machine_type: str,
    add_versions: Callable[[int], list[int]],
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    add_versions(2)
    registry.set_champion(machine_type, 1)
    argv = ["--machine-type", machine_type, "--tracking-uri", uri, *args]
    assert promote.main(argv) == 2
    said = capsys.readouterr()
    assert message.format(machine_type) in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert registry.champion(machine_type)[0] == 1
