"""What a journal tells is counted right, and reading it disturbs no search."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from scipy import stats

from search.rank_correlation import spearman
from search.report_facts import ReportError, read_facts
from search.storages import JOURNAL, open_storage
from tests.report_fixtures import (
    EPOCHS,
    OUTCOME,
    SECONDS,
    add_accidents,
    ask,
    confirm,
    facts_of,
    fill,
    make_study,
    open_journal,
    run,
)

HOUR = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "s"


def finish(
    study: optuna.Study, level: float, epochs: int = EPOCHS, seconds: float | None = SECONDS
) -> int:
    """A complete trial, or a pruned one if it does not reach the last epoch; its number."""
    trial = ask(study)
    value = run(trial, level, epochs, seconds=seconds)
    is_complete = epochs == EPOCHS
    values = [value, 5.0][: len(study.directions)] if is_complete else None
    study.tell(trial.number, values, TrialState.COMPLETE if is_complete else TrialState.PRUNED)
    return int(trial.number)


def test_every_ending_is_told_apart(folder: Path) -> None:
    study = make_study(folder)
    best = finish(study, 0.9)
    pruned = finish(study, 0.7, epochs=2)
    add_accidents(study)
    facts = facts_of(folder)
    states = [trial.state for trial in facts.trials]
    assert states == ["complete", "pruned", "failed", "infeasible", "failed", "running"]
    assert facts.counts == {
        "complete": 1, "pruned": 1, "infeasible": 1, "failed": 2, "running": 1, "paused": 0,
        "waiting": 0,
    }  # fmt: skip
    assert facts.best == facts.trial(best)
    assert facts.trial(pruned).value == pytest.approx(0.5 + 0.2 * 0.75)  # after its last epoch
    assert facts.trial(pruned).epochs == 2
    assert facts.trial(3).value is None  # never ran
    assert facts.trial(4).reason == "out of memory"
    assert facts.trial(5).attempts == 2
    assert facts.trial(best).params["network.depth"] == 4  # a fixed one


def test_machine_types_are_read_by_name_whatever_the_folder_is_called(folder: Path) -> None:
    for machine_type in ("valve", "fan"):
        make_study(folder, machine_type)
    moved = folder.rename(folder.with_name("moved"))
    assert [facts.machine_type for facts in read_facts(moved)] == ["fan", "valve"]


def test_the_best_is_a_complete_trial_and_of_equals_the_earlier(folder: Path) -> None:
    study = make_study(folder)
    assert facts_of(folder).best is None
    finish(study, 0.95, epochs=3)
    first = finish(study, 0.6)
    finish(study, 0.6)
    best = facts_of(folder).best
    assert best is not None
    assert best.number == first


def test_rungs_count_who_reached_an_epoch_and_who_went_on(folder: Path) -> None:
    study = make_study(folder)
    for epochs in (EPOCHS, 1, 3, 3, EPOCHS):
        finish(study, 0.8, epochs=epochs)
    run(ask(study), 0.8, 2)
    rungs = facts_of(folder).rungs()
    assert [rung.epoch for rung in rungs] == list(range(1, EPOCHS + 1))
    assert [rung.reached for rung in rungs] == [6, 5, 4, 2, 2, 2, 2, 2, 2]
    assert [rung.went_on for rung in rungs] == [5, 4, 2, 2, 2, 2, 2, 2, 0]
    assert rungs[0].ended == {"pruned": 1}
    assert rungs[1].ended == {"running": 1}
    assert rungs[2].ended == {"pruned": 2}
    assert rungs[-1].ended == {"complete": 2}


@pytest.mark.parametrize(
    ("resources", "unit", "share"),
    [
        ({"cpu": 2.0, "gpu": 0.0}, "core-hours", 2.0),
        ({"cpu": 2.0, "gpu": 0.25}, "GPU-hours", 0.25),
        ({}, "slot-hours", 1.0),
    ],
)
def test_cost_is_the_seconds_of_epochs_times_a_trial_s_share(
    folder: Path, resources: dict[str, float], unit: str, share: float
) -> None:
    study = make_study(folder, resources=resources)
    finish(study, 0.8)
    finish(study, 0.7, epochs=3)
    facts = facts_of(folder)
    assert facts.cost_unit == unit
    assert facts.cost(facts.trials) == pytest.approx(share * 12 * SECONDS / HOUR)
    assert facts.cost(facts.of_state("pruned")) == pytest.approx(share * 3 * SECONDS / HOUR)
    assert facts.saved == pytest.approx(share * 6 * SECONDS / HOUR)


def test_cost_is_of_what_each_epoch_and_seed_held_whatever_a_later_run_holds(
    folder: Path,
) -> None:
    study = make_study(folder, resources={"cpu": 2.0, "gpu": 0.25})
    held = {"cpu": 2.0, "gpu": 1.0}
    trial = ask(study)
    run(trial, 0.8, 2, last=held, seconds=1800.0)
    trial.set_user_attr("epoch/1", {"seconds": 1800.0, **held})
    study.tell(trial.number, state=TrialState.PRUNED)
    study.set_user_attr("confirmation/0/0", {"objective": 0.7, "seconds": 3600.0, **held})
    facts = facts_of(folder)
    assert (facts.cost(facts.trials), facts.confirmation_cost) == (1.0, 1.0)
    assert facts.saved == pytest.approx(0.5 * (EPOCHS - 2))
    assert facts.cost_unit == "GPU-hours"
    study.set_user_attr("confirmation/0/1", {"objective": 0.7, "seconds": 3600.0, "gpu": 0.0})
    facts = facts_of(folder)
    assert facts.confirmation_cost == pytest.approx(1.0 + 2.0)
    assert facts.cost_unit == "GPU- and core-hours"


def test_what_has_no_recorded_time_has_no_cost(folder: Path) -> None:
    study = make_study(folder)
    finish(study, 0.7, epochs=3)
    finish(study, 0.7, epochs=3, seconds=None)
    facts = facts_of(folder)
    assert facts.cost(facts.trials[1:]) is None
    assert facts.cost(facts.trials) == pytest.approx(3 * SECONDS / HOUR)
    assert facts.saved is None  # of the second it is not known


def test_flattery_compares_the_best_trial_with_its_own_fresh_seeds(folder: Path) -> None:
    study = make_study(folder)
    finish(study, 0.7)
    best = finish(study, 0.9)
    value = study.trials[best].values[0]
    confirm(study, 0, 0.99)
    assert facts_of(folder).flattery is None  # another trial's seeds say nothing of it
    confirm(study, best, value - 0.06, value - 0.02, None)
    facts = facts_of(folder)
    assert facts.flattery == pytest.approx(0.04)
    seeds = facts.seeds(best)
    assert seeds is not None
    assert (len(seeds.values), seeds.failures) == (2, ("crash",))


def test_finalists_with_a_failure_come_last_and_seeds_keep_their_order(folder: Path) -> None:
    study = make_study(folder)
    for level in (0.6, 0.7, 0.8):
        finish(study, level)
    confirm(study, 0, 0.9, None)
    confirm(study, 1, *(0.5 + i / 100 for i in range(11)))  # "1/10" is not before "1/2"
    confirm(study, 2, 0.7)
    finalists = facts_of(folder).finalists
    assert [seeds.number for seeds in finalists] == [2, 1, 0]
    assert list(finalists[1].values) == sorted(finalists[1].values)


def test_the_winner_is_known_once_it_is_tested(folder: Path) -> None:
    study = make_study(folder)
    finish(study, 0.8)
    assert facts_of(folder).winner is None
    study.set_user_attr("outcome", OUTCOME)
    assert facts_of(folder).winner == 0


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]])
def test_the_pareto_front_holds_whom_no_other_beats_in_both(
    folder: Path, directions: list[str]
) -> None:
    study = make_study(folder, second_objective="macs_per_s", directions=directions)
    pairs = [(0.7, 2.0), (0.8, 3.0), (0.8, 4.0), (0.75, 1.0), (0.6, 1.0)]
    for value, cost in pairs:
        trial = ask(study)
        if len(directions) == 1:
            trial.set_user_attr("second_objective", cost)
        study.tell(trial.number, [value, cost][: len(directions)])
    facts = facts_of(folder)
    assert [(t.value, t.second) for t in facts.pareto_front()] == [(0.75, 1.0), (0.8, 3.0)]
    best = facts.best
    assert best is not None
    assert best.number == 1


def test_label_free_figures_are_correlated_over_complete_trials(folder: Path) -> None:
    study = make_study(folder)
    fill(study, 25)
    facts = facts_of(folder)
    complete = facts.of_state("complete")
    swap, likelihood = facts.rank_correlations()
    for found in (swap, likelihood):
        x = [trial.metrics[found.figure] for trial in complete]
        y = [trial.metrics["val_auc"] for trial in complete]
        assert found.n == len(complete) > 5
        assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
        assert found.interval is not None
        assert -1 <= found.interval[0] <= found.rho <= found.interval[1] <= 1
    assert likelihood.rho is not None
    assert likelihood.rho < -0.5  # the fixture makes it fall where the AUC rises


def test_a_correlation_of_ties_agrees_with_scipy_and_one_of_constants_is_none() -> None:
    pairs = stats.rankdata([[1, 2, 2, 3, 5, 4], [2, 2, 1, 5, 3, 3]], axis=1).T
    found = spearman("x", pairs)
    assert found.rho == pytest.approx(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
    pairs[:, 0] = 7.0
    assert spearman("x", pairs) == ("x", 6, None, None)
    assert spearman("x", pairs[:4]) == ("x", 4, None, None)


def test_reading_changes_nothing_and_needs_no_lock(folder: Path) -> None:
    with open_storage(folder):  # as a search that runs holds it
        study = make_study(folder)
        finish(study, 0.8)
        journal = folder / JOURNAL
        journal.with_name(f"{JOURNAL}.lock").symlink_to(journal)  # held while it writes a line
        before = sorted(folder.iterdir()), journal.read_bytes(), journal.stat().st_mtime_ns
        assert facts_of(folder).counts["complete"] == 1
        after = sorted(folder.iterdir()), journal.read_bytes(), journal.stat().st_mtime_ns
    assert after == before


def test_half_a_last_line_is_one_that_is_still_being_written(folder: Path) -> None:
    finish(make_study(folder), 0.8)
    with (folder / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 6, "trial_id": 0, "sta')
    assert facts_of(folder).counts["complete"] == 1


def broken(folder: Path) -> None:
    folder.mkdir()
    (folder / JOURNAL).write_text("no journal\nat all\n")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "optuna.journal does not exist: --study must name"),
        (lambda folder: folder.mkdir(), "optuna.journal does not exist: --study must name"),
        (open_journal, "holds no study yet"),
        (broken, "is no readable journal"),
    ],
)
def test_a_folder_without_a_study_is_refused(
    folder: Path, prepare: Callable[[Path], object], message: str
) -> None:
    prepare(folder)
    with pytest.raises(ReportError, match=message) as caught:
        read_facts(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_name_leaves_nothing_behind(folder: Path) -> None:
    with pytest.raises(ReportError):
        read_facts(folder)
    assert list(folder.parent.iterdir()) == []
