"""Trials that pause at every rung and go on when they are among its best: the contract.

Without Ray, as in `test_searcher`.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from search.config import SamplerConfig, SchedulerConfig
from search.schedulers import due, furthest
from search.space import Params
from search.studies import StorageLost, TypeStudy, ending_of
from search.views import paused_after
from tests.bench.simulation import Step, simulate
from tests.doubles import level_of, result_of, space_file
from tests.searching import EPOCHS, SAMPLERS, Search, curve, searching
from tests.study_fixtures import new_study
from tests.unit.test_bench_simulation import RANDOM, SPACE, rising

PAUSING = "asha_pause"  # with 4 epochs and a factor of 2, at epochs 1 and 2


def run_until_paused(search: Search, level: float) -> FrozenTrial:
    """Start whoever is next, and let it report until its process is taken from it."""
    trial = search.tune.start()
    assert trial is not None
    study = search.studies[trial.config["machine_type"]]
    told = max(study.trial(trial.config["number"]).intermediate_values, default=0)
    for epoch in range(max(1, told), EPOCHS + 1):  # its checkpoint's epoch is reported again
        if not search.tune.report(trial, result_of(epoch, EPOCHS, level)):
            break
    return study.trial(trial.config["number"])


def run_all(search: Search, level: Callable[[FrozenTrial], float]) -> None:
    """Every trial to its end, one epoch of each that runs at a time."""
    live = []
    while not search.tune.is_finished or live:
        while (trial := search.tune.start()) is not None:
            study = search.studies[trial.config["machine_type"]]
            stored = study.trial(trial.config["number"])
            told = max(stored.intermediate_values, default=0)
            live.append((trial, level(stored), iter(range(max(1, told), EPOCHS + 1))))
        for entry in live[:]:
            trial, reached, epochs = entry
            if not search.tune.report(trial, result_of(next(epochs), EPOCHS, reached)):
                live.remove(entry)


def test_nobody_passes_a_rung_for_lack_of_rivals(tmp_path: Path) -> None:
    with searching(tmp_path, 9, scheduler=PAUSING) as search:
        first = run_until_paused(search, 0.9)
        assert (ending_of(first), paused_after(first)) == ("paused", 1)
        assert search.studies["fan"].count("paused") == 1
        second = run_until_paused(search, 0.6)
        assert second.number == 1


def test_the_better_one_of_two_goes_on_from_where_it_paused(tmp_path: Path) -> None:
    with searching(tmp_path, 9, scheduler=PAUSING) as search:
        run_until_paused(search, 0.6)
        before = run_until_paused(search, 0.9)
        again = run_until_paused(search, 0.9)
        assert again.number == before.number == 1
        assert again.params == before.params
        assert again.intermediate_values == curve(0.9, 2)
        assert again.user_attrs["epoch/1"] == before.user_attrs["epoch/1"]
        assert "attempts" not in again.user_attrs  # nothing had gone wrong
        assert paused_after(again) == 2


def test_a_search_that_was_killed_lets_paused_trials_wait(tmp_path: Path) -> None:
    with searching(tmp_path, 9, scheduler=PAUSING) as search:
        run_until_paused(search, 0.6)
    with searching(tmp_path, 9, scheduler=PAUSING) as search:
        assert run_until_paused(search, 0.9).number == 1
        again = run_until_paused(search, 0.9)
        assert (again.number, paused_after(again)) == (1, 2)
        assert "attempts" not in again.user_attrs


def test_a_trial_whose_search_ends_before_its_pause_is_noted_passes_no_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(study: TypeStudy, number: int) -> None:
        raise StorageLost("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(TypeStudy, "pause", lost)
        with searching(tmp_path, 9, scheduler=PAUSING) as search:
            with pytest.raises(StorageLost):
                run_until_paused(search, 0.9)
    with searching(tmp_path, 9, scheduler=PAUSING) as search:
        again = run_until_paused(search, 0.9)
        assert (again.number, paused_after(again)) == (0, 1)
        assert run_until_paused(search, 0.6).number == 1
        assert paused_after(run_until_paused(search, 0.9)) == 2  # let on from the first


def test_a_state_from_before_the_rung_that_let_a_trial_on_passes_the_rungs_again(
    tmp_path: Path,
) -> None:
    """Its later states could not be stored: paused at each of them, it would never go on."""
    with searching(tmp_path, 9, scheduler=PAUSING) as search:
        for level in (0.6, 0.9, 0.9, 0.6, 0.9, 0.9):  # the better two get to the second rung
            run_until_paused(search, level)
        trial = search.tune.start()
        assert trial is not None
        assert search.studies["fan"].trial(trial.config["number"]).user_attrs["let_on"] == 2
        assert search.tune.report(trial, result_of(1, EPOCHS, 0.9))
        assert search.tune.report(trial, result_of(2, EPOCHS, 0.9))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_whole_search_leaves_nothing_behind(tmp_path: Path, sampler: str) -> None:
    types = ("fan", "valve")
    with searching(tmp_path, 9, sampler=sampler, scheduler=PAUSING, machine_types=types) as search:
        run_all(search, lambda trial: level_of(trial.params))
        for study in search.studies.values():
            trials = study.trials()
            assert [trial.number for trial in trials] == list(range(9))
            assert {ending_of(trial) for trial in trials} == {"complete", "pruned"}
            for trial in trials:
                assert list(trial.intermediate_values) in ([1], [1, 2], [1, 2, 3, 4])
                is_whole = trial.state == TrialState.COMPLETE
                assert is_whole == (len(trial.intermediate_values) == EPOCHS)
                assert is_whole or trial.user_attrs["reason"].startswith("stopped by the scheduler")
            # Half of those there at a time may pass a rung, so more than half of 9 may have.
            assert 4 <= sum(len(t.intermediate_values) > 1 for t in trials) < 9
            ends = {t.number: level_of(t.params) for t in trials}
            best = study.best()
            assert best is not None
            assert best.number == max(ends, key=lambda number: (ends[number], -number))


@pytest.mark.parametrize(
    ("finalists", "sign", "whole"), [(1, 1, {2, 3}), (4, 1, {0, 1, 2, 3}), (1, -1, {0})]
)
def test_the_best_go_on_at_the_end_until_there_are_enough_finalists(
    tmp_path: Path, finalists: int, sign: int, whole: set[int]
) -> None:
    with searching(tmp_path, 4, scheduler=PAUSING, finalists=finalists, slots=1) as search:
        run_all(search, lambda trial: 0.7 + sign * trial.number / 20)
        trials = search.studies["fan"].trials()
    assert {t.number for t in trials if t.state == TrialState.COMPLETE} == whole


def test_one_is_complete_early_lest_the_time_be_up() -> None:
    """Three rungs would let the first of 27 trials through; the best of nine goes on unjudged."""

    def flat(params: Params, number: int) -> list[Step]:
        return [Step(epoch, params["x"], 1.0) for epoch in range(1, 28)]

    scheduler = SchedulerConfig(name="asha_pause", reduction_factor=3)
    trials, reports = simulate(
        flat, SPACE, sampler=RANDOM, scheduler=scheduler, n_trials=99, epochs=27
    )
    index = next(i for i, report in enumerate(reports) if report.step.epoch == 27)
    numbers = {report.number for report in reports[: index + 1]}
    assert 9 <= len(numbers) <= 13  # of nine some are not paused, but on their way to a rung
    before = [trials[number].params["x"] for number in numbers]
    assert reports[index].step.value == max(before)


def test_a_larger_budget_adds_trials_that_meet_those_of_before(tmp_path: Path) -> None:
    with searching(tmp_path, 4, scheduler=PAUSING) as search:
        run_all(search, lambda trial: 0.6 + trial.number / 10)
        first = search.studies["fan"].trials()
    with searching(tmp_path, 6, scheduler=PAUSING) as search:
        run_all(search, lambda trial: 0.55)
        trials = search.studies["fan"].trials()
    assert trials[:4] == first
    assert [len(trial.intermediate_values) for trial in trials[4:]] == [1, 1]


@pytest.mark.parametrize(
    ("report", "state", "reason"),
    [
        ({"failure": "crash: ValueError: x", "done": True}, TrialState.FAIL, "crash: ValueError"),
        ({"failure": "out of memory: 8 GiB", "done": True}, TrialState.PRUNED, "out of memory"),
        (result_of(2, EPOCHS, 0.9) | {"objective": math.nan}, TrialState.FAIL, "non-finite"),
    ],
    ids=["crash", "memory", "nan"],
)
def test_one_that_fails_after_it_went_on_has_failed(
    tmp_path: Path, report: dict[str, object], state: TrialState, reason: str
) -> None:
    with searching(tmp_path, 3, scheduler=PAUSING) as search:
        run_until_paused(search, 0.6)
        run_until_paused(search, 0.9)
        trial = search.tune.start()
        assert trial is not None
        assert trial.config["number"] == 1
        assert search.tune.report(trial, result_of(1, EPOCHS, 0.9))
        assert not search.tune.report(trial, report)
        failed = search.studies["fan"].trial(1)
        run_all(search, lambda trial: 0.7)
        assert all(t.state.is_finished() for t in search.studies["fan"].trials())
    assert failed.state == state
    assert ending_of(failed) == "failed"
    assert failed.user_attrs["reason"].startswith(reason)
    assert failed.intermediate_values == curve(0.9, 1)


def test_a_worker_lost_after_it_went_on_is_an_attempt(tmp_path: Path) -> None:
    with searching(tmp_path, 3, scheduler=PAUSING) as search:
        run_until_paused(search, 0.6)
        run_until_paused(search, 0.9)
        trial = search.tune.start()
        assert trial is not None
        search.tune.lose_worker(trial, retries_left=True)
        assert search.tune.report(trial, result_of(1, EPOCHS, 0.9))
        assert not search.tune.report(trial, result_of(2, EPOCHS, 0.9))
        assert search.studies["fan"].trial(1).user_attrs["attempts"] == 2
        assert paused_after(search.studies["fan"].trial(1)) == 2


def test_no_more_of_a_type_at_once_than_asked_for(tmp_path: Path) -> None:
    with searching(tmp_path, 9, scheduler=PAUSING, slots=9, parallel=1) as search:
        run_until_paused(search, 0.6)
        run_until_paused(search, 0.9)
        assert search.tune.start() is not None
        assert search.tune.start() is None


def test_only_what_was_paused_at_a_rung_is_due_and_the_furthest_first() -> None:
    config = SchedulerConfig(name="asha_pause", reduction_factor=2, grace_epochs=1)
    study = new_study()
    levels = {0: (0.5,), 1: (0.9, 0.8), 2: (0.8, 0.9), 3: (0.7,), 4: (0.4,), 5: (0.3,)}
    for number, values in levels.items():
        assert study.ask() is not None
        for epoch, value in enumerate(values, 1):
            study.record_epoch(number, epoch, {}, value)
        study.pause(number)
    trials = study.trials()
    assert due(config, 4, trials) == [2, 3]  # of two at epoch 2 the better, of six the best three
    paused = [trial for trial in trials if paused_after(trial)]
    assert furthest(paused) == 2
    study.go_on(2)
    assert due(config, 4, study.trials()) == [3]
    paused = [trial for trial in study.trials() if paused_after(trial)]
    assert furthest(paused) == 1


def test_three_rungs_however_long_a_training_is() -> None:
    for epochs, grace in ((3, 1), (27, 1), (30, 1), (100, 4), (729, 27)):
        assert SchedulerConfig().grace(epochs) == grace
    assert SchedulerConfig(grace_epochs=5).grace(729) == 5


def test_a_deterministic_search_is_refused() -> None:
    with pytest.raises(ValidationError, match="asha_pause lets them wait for each other"):
        space_file(study={"deterministic": True, "parallel": 2}, scheduler={"name": "asha_pause"})


def test_a_simulated_search_spends_less_and_finds_the_best() -> None:
    spent = {}
    for name in ("asha", "asha_pause"):
        trials, reports = simulate(
            rising,
            SPACE,
            sampler=RANDOM,
            scheduler=SchedulerConfig(name=name, reduction_factor=3),  # type: ignore[arg-type]
            n_trials=30,
            epochs=9,
            workers=4,
        )
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        assert max(trials, key=lambda trial: trial.params["x"]) in complete
        assert len(reports) == sum(len(trial.intermediate_values) for trial in trials)
        spent[name] = len(reports)
    assert spent["asha_pause"] < spent["asha"]


@pytest.mark.parametrize(("sampler", "n_complete"), [("gp", 2), ("tpe", 0)])
def test_samplers_know_what_a_paused_trial_has_reached(sampler: str, n_complete: int) -> None:
    """Only a high rate is good, not quite the highest, and all trials but a few wait."""
    study = new_study(sampler=SamplerConfig(name=sampler, startup_trials=5))
    rates = []
    for number in range(25):
        trial = study.ask()
        assert trial is not None
        rates.append(math.log10(trial.params["train.lr"]))
        value = 1 - abs(rates[-1] + 1.2) / 10
        study.record_epoch(number, 1, {}, value)
        if number < n_complete:
            study.finish(number, TrialState.COMPLETE, value=value)
        else:
            study.pause(number)
    assert sorted(rates[15:])[5] > -1.6  # of -4 to -1
