"""What is noted of the systems that met the test."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState
from sklearn.metrics import roc_auc_score

from mimimi_core import table2
from search import finalists
from search.config import SpaceError, load_space
from search.finalists import _combine, _figures, _members, score_finalists, system_of
from search.shared_files import SharedFiles
from search.studies import FINALISTS
from tests.doubles import space_file
from tests.model_fixtures import resplit, tone_pack
from tests.study_fixtures import new_study

PACK = tone_pack(n_ids=2, n_other=6)


def nll(seed: int, hears: float = 1.5) -> np.ndarray:
    """Scores of all clips under both ids, anomalies a little higher."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (len(PACK.labels), 2)) + hears * PACK.labels[:, None]


def test_figures_are_means_over_seeds_of_scikit_learns() -> None:
    seeds = [nll(0), nll(1), nll(2)]
    found = _figures(seeds, PACK)
    for name, splits in (("test", ["test"]), ("dev", ["val", "test"])):
        clips = np.isin(PACK.splits, splits)
        aucs = []
        for scores in seeds:
            of_ids = []
            for index in (0, 1):
                mine = clips & (PACK.id_index == index)
                of_ids.append(roc_auc_score(PACK.labels[mine], scores[mine, index]))
            aucs.append(np.mean(of_ids))
        assert found[name]["auc_of_seeds"] == pytest.approx(aucs)
        assert found[name]["auc"] == pytest.approx(np.mean(aucs))
        assert found[name]["n_clips"] == clips.sum()
        low, high = found[name]["ci"]
        assert low < found[name]["auc"] < high


def test_an_id_without_training_clips_counts_in_no_figure() -> None:
    of_id = np.flatnonzero((PACK.splits == "train") & (PACK.id_index == 1))
    found = _figures([nll(0)], resplit(PACK, of_id, "unused"))
    for name, n_clips in (("test", 12), ("dev", 24)):
        assert found[name]["without_auc"] == ["id_02"]
        assert found[name]["n_clips"] == n_clips


def test_an_ensemble_does_not_see_how_its_members_are_scaled() -> None:
    quiet, loud = [nll(0), nll(1)], [nll(2), nll(3)]
    expected = _figures(_combine([quiet, loud], PACK), PACK)["test"]["auc"]
    scaled = [1000 * scores - 7 for scores in loud]
    assert _figures(_combine([quiet, scaled], PACK), PACK)["test"]["auc"] == pytest.approx(expected)
    alone = [_figures(seeds, PACK)["test"]["auc"] for seeds in (quiet, loud)]
    assert expected > np.mean(alone)


def test_the_test_clips_do_not_scale_an_ensemble() -> None:
    changed = [scores.copy() for scores in (nll(0), nll(1))]
    is_test = PACK.splits == "test"
    for scores in changed:
        scores[is_test] *= 5
    before, after = (
        _combine([[nll(0)], [nll(1)]], PACK)[0],
        _combine([[x] for x in changed], PACK)[0],
    )
    np.testing.assert_array_equal(before[~is_test], after[~is_test])


def test_a_trial_is_called_what_the_paper_calls_it() -> None:
    path = Path(__file__).parents[2] / "spaces" / "paper.yaml"
    study = new_study(space=load_space(path))
    names = []
    while trial := study.ask():
        names.append(system_of(study, trial.number))
    assert set(names) == {row.name for row in table2.SYSTEMS} | {None}
    for members in table2.ENSEMBLES.values():
        assert all(names.count(member) == 1 for member in members)


def test_of_how_many_trials_finalists_are_the_best_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study()
    task = SimpleNamespace(remote=lambda *args: None)
    monkeypatch.setattr(finalists, "confirmed", lambda *args: {0: ["a"]})
    monkeypatch.setattr(finalists, "as_task", lambda *args: task)
    monkeypatch.setattr(finalists, "scored", lambda *args: [nll(0)])
    monkeypatch.setattr(finalists, "system_of", lambda *args: None)
    for n in (1, 2):  # the second time finds the same finalist again, among more
        trial = study.ask()
        assert trial is not None
        study.finish(trial.number, TrialState.COMPLETE, 0.5)
        resources = {"cpu": 1.0, "gpu": 0.0}
        score_finalists(
            study, PACK, space_file(), tmp_path, resources, SharedFiles(str(tmp_path)), "pack"
        )
        assert study.noted(FINALISTS)["complete"] == n
        assert [system["number"] for system in study.noted(FINALISTS)["systems"]] == [0]


def test_testing_all_needs_finalists(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "study: {trials: 1, epochs: 1}\nconfirmation: {top: 0, test: all}\n"
        "parameters: {train.lr: {kind: fixed, value: 0.001}}\n"
    )
    with pytest.raises(SpaceError, match="top must be >= 1, got 0"):
        load_space(file)
    assert space_file().confirmation.test == "winner"  # one look, unless somebody asks for more


def test_an_ensemble_takes_the_best_of_each_of_its_systems() -> None:
    systems = [{"number": n, "system": name} for n, name in ((4, "a"), (2, "a"), (7, "b"))]
    assert _members(systems, ("a", "b")) == [4, 7]
    assert _members(systems, ("a", "c")) is None  # not two of one
