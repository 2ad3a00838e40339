"""A winner's networks meet the test once; what is told of it is of those networks and current."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from mimimi_core.evaluation import Evaluation, build_detector, evaluate
from mimimi_core.training import Training
from search import conclude as module
from search.conclude import _read, _tell, conclude
from search.confirmation import Winner, find_winner
from search.registry import Version
from search.shared_files import SharedFiles
from search.studies import TypeStudy
from tests.doubles import space_file
from tests.model_fixtures import CPU, make_detector, tiny_config, tone_pack
from tests.study_fixtures import new_study


class Nowhere:
    """Stands for tracker and registry; there is no champion."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    training = Training(tiny_config(), tone_pack(), CPU)
    training.run_epoch()
    return evaluate(build_detector([training]), training.pack)


@pytest.fixture
def study() -> TypeStudy:
    """One complete trial, at .9."""
    study = new_study()
    trial = study.ask()
    assert trial is not None
    number = trial.number
    study.record_epoch(number, 1, {}, 0.9)
    study.finish(number, TrialState.COMPLETE, value=0.9)
    return study


@pytest.fixture
def tested(
    monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation, tmp_path: Path
) -> list[Sequence[str]]:
    """Checkpoints of every winner that has met the test, without Ray."""
    met: list[Sequence[str]] = []

    def scored(args: Sequence[Any], who: str) -> tuple[Evaluation, dict[str, bytes], Any]:
        met.append([Path(state).parent.name for state in args[1]])
        return evaluation, model, {"roc.png": b"", f"{len(met)}.png": b""}

    make_detector().save(tmp_path / "worker")
    model = _read(tmp_path / "worker")
    task = SimpleNamespace(remote=lambda *args: args)
    monkeypatch.setattr(module, "as_task", lambda *_: task)
    monkeypatch.setattr(module, "scored", scored)
    return met


class Store(Nowhere):
    """Stands for a tracker and a registry that keep what they are given."""

    def __init__(self) -> None:
        self.found: list[Version] = []
        self.artifacts: dict[str, set[str]] = {}
        self.tags: dict[str, str] = {}
        self.is_promoted = False

    def trial_run(self, machine_type: str, number: int) -> str:
        return "run"

    def log_files(self, run_id: str, folder: Path, name: str) -> None:
        self.artifacts.setdefault(name, set()).update(path.name for path in folder.iterdir())

    def log_parent(self, machine_type: str, metrics: Any, tags: dict[str, str]) -> None:
        self.tags = tags

    def register(self, *args: Any, tags: dict[str, str], metrics: Any) -> int:
        now, number = datetime.now(UTC), len(self.found) + 1
        self.found.append(Version(number=number, created=now, tags=tags))
        return number

    def versions(self, machine_type: str) -> list[Version]:
        return self.found

    def champion(self, machine_type: str) -> tuple[int, dict[str, str]] | None:
        return (len(self.found), {}) if self.is_promoted else None

    def replace_champion(self, *args: Any) -> bool:
        self.is_promoted = True
        return True


def end(
    study: TypeStudy,
    out: Path,
    top: int,
    seeds: int = 1,
    ensemble: int = 1,
    store: Nowhere | None = None,
) -> dict[str, Any]:
    """What the command tells that has this confirmation; with a store, it promotes there."""
    update = {"top": top, "seeds": seeds, "ensemble": ensemble}
    confirmation = space_file().confirmation.model_copy(update=update)
    space = space_file().model_copy(update={"confirmation": confirmation})
    return conclude(
        study,
        tone_pack(),
        find_winner(study, space, out / "s"),
        folder=out / "s",
        resources={"cpu": 1.0, "gpu": 0.0},
        files=SharedFiles(out),
        shared_pack="",
        tracker=store or Nowhere(),  # type: ignore[arg-type]
        registry=store or Nowhere(),  # type: ignore[arg-type]
        tags={"study": "s"},
        mode="auto" if store else "never",
        promotion=space.promotion,
    )


def test_without_confirmation_no_confirmed_figure_is_told(
    study: TypeStudy, tested: list[Sequence[str]], tmp_path: Path
) -> None:
    for _ in range(2):
        found = end(study, tmp_path, top=0)
        assert found["confirmed_val_auc"] is None
        assert found["best_val_auc"] == 0.9
        assert found["test_auc"] is not None
    study.note("confirmation/0/0", {"failure": "crash"})  # nor if no finalist could be confirmed
    assert end(study, tmp_path, top=1)["confirmed_val_auc"] is None
    assert tested == [["00000"]]


def test_the_same_trial_with_a_fresh_seed_is_another_network(
    study: TypeStudy, tested: list[Sequence[str]], tmp_path: Path
) -> None:
    end(study, tmp_path, top=0)
    study.note("confirmation/0/0", {"objective": 0.7})
    for _ in range(2):
        assert end(study, tmp_path, top=1)["confirmed_val_auc"] == 0.7
    assert tested == [["00000"], ["00000-0"]]


def test_more_seeds_change_the_confirmed_figure_and_not_the_network(
    study: TypeStudy, tested: list[Sequence[str]], tmp_path: Path
) -> None:
    study.note("confirmation/0/0", {"objective": 0.7})
    assert end(study, tmp_path, top=1, seeds=1)["confirmed_val_auc"] == 0.7
    study.note("confirmation/0/1", {"objective": 0.8})
    found = end(study, tmp_path, top=1, seeds=2)
    assert found["confirmed_val_auc"] == pytest.approx(0.75)
    assert tested == [["00000-0"]]


def test_an_outcome_that_tells_no_confirmation_is_of_the_winner_as_it_is(
    study: TypeStudy, tested: list[Sequence[str]], tmp_path: Path
) -> None:
    findings = {"confirmed_val_auc": 0.9, "test_auc": 0.6, "champion_version": None}
    study.note("outcome", {"winner": 0, "version": None, "findings": findings})
    found = end(study, tmp_path, top=0)
    assert (found["confirmed_val_auc"], found["test_auc"]) == (None, 0.6)
    assert tested == []


def test_who_could_not_judge_is_not_told_to_have_judged(
    study: TypeStudy, tested: list[Sequence[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The evaluation is of one network, as where those of an ensemble have no scale."""
    trial = study.ask()
    assert trial is not None
    study.finish(trial.number, TrialState.COMPLETE, value=0.8)
    for number, value in ((0, 0.9), (1, 0.8)):
        study.note(f"confirmation/{number}/0", {"objective": value})
    with caplog.at_level("INFO"):
        for _ in range(2):
            end(study, tmp_path, top=2, ensemble=2)
    assert tested == [["00000-0", "00001-0"]]
    noted = study.noted("outcome")
    assert noted is not None
    assert (noted["chosen"], noted["members"]) == ([0, 1], [0])
    assert "trial 0 judges alone: an ensemble with trials 1 has no scale" in caplog.text
    assert "judge with it" not in caplog.text


def test_an_id_without_a_threshold_has_a_reason(
    study: TypeStudy, evaluation: Evaluation, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = evaluation.val.per_id
    untrained = dataclasses.replace(second, is_trained=False)
    judged = dataclasses.replace(
        evaluation,
        val=dataclasses.replace(evaluation.val, per_id=(first, untrained)),
        thresholds=dict.fromkeys(evaluation.thresholds),
    )
    with caplog.at_level("INFO"):
        _tell(study, Winner(members=(0,), checkpoints=("",), objectives=()), judged)
    alike = "fewer than two held-out normal clips with different scores"
    assert f"id_00: no threshold: {alike}\n" in caplog.text
    assert "id_02: no threshold: no clip of it trained the model\n" in caplog.text


def test_a_registry_that_lacks_the_version_gets_it(
    study: TypeStudy, tested: list[Sequence[str]], tmp_path: Path
) -> None:
    first, lost, others = Store(), Store(), Store()
    others.register(tags={"study": "t"}, metrics={})  # another study's has the number
    for store, version in ((first, 1), (lost, 1), (others, 2)):
        for _ in range(2):
            found = end(study, tmp_path, top=0, store=store)
            assert (found["promoted"], found["champion_version"]) == (True, version)
        assert store.found[-1].tags["study"] == "s"
        assert list(store.artifacts) == ["evaluation/trial-0"]
        assert store.tags["decision"] == "promoted: there was no champion"
    assert len(tested) == 3


def test_a_winner_that_a_worker_has_scored_with_takes_no_device_here(
    study: TypeStudy,
    tested: list[Sequence[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mimimi_core.detector.pick_device", lambda: pytest.fail("took a device"))
    assert end(study, tmp_path, top=0, store=Store())["promoted"]


def test_a_new_winner_leaves_no_file_of_the_one_before(
    study: TypeStudy, tested: list[Sequence[str]], tmp_path: Path
) -> None:
    store = Store()
    end(study, tmp_path, top=0, store=store)
    (tmp_path / "s" / "models" / "fan" / "member_1.safetensors").touch()
    trial = study.ask()
    assert trial is not None
    study.finish(trial.number, TrialState.COMPLETE, value=0.95)
    end(study, tmp_path, top=0, store=store)
    names = {path.name for path in (tmp_path / "s" / "evaluation" / "fan").iterdir()}
    assert names == {"roc.png", "2.png"}
    assert store.artifacts == {
        "evaluation/trial-0": {"roc.png", "1.png"},
        "evaluation/trial-1": {"roc.png", "2.png"},
    }
    model = tmp_path / "s" / "models" / "fan"
    assert {path.name for path in model.iterdir()} == set(_read(tmp_path / "worker"))
