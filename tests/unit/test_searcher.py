"""The contract of the searcher, for each sampler and scheduler: every ending is booked as it was.

Without Ray: `FakeTune` makes the calls that Tune's controller makes, on an analytic objective.
"""

import math
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
from optuna.trial import TrialState

from search.config import SchedulerConfig
from search.searcher import SnapshotFreeGenerator, cached
from search.space import all_params
from search.studies import StorageLost
from tests.doubles import level_of, result_of
from tests.searching import EPOCHS, SAMPLERS, curve, searching

# What pauses trials has a contract of its own, `test_pausing`.
SCHEDULERS = {*get_args(SchedulerConfig.model_fields["name"].annotation)} - {"asha_pause"}

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
every_scheduler = pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))


@every_sampler
@every_scheduler
def test_complete(tmp_path: Path, sampler: str, scheduler: str) -> None:
    with searching(tmp_path, 1, sampler=sampler, scheduler=scheduler) as search:
        trial = search.run_trial(0.9)
        assert search.tune.start() is None
        assert search.tune.is_finished
    assert trial.state == TrialState.COMPLETE
    assert trial.intermediate_values == curve(0.9)  # the last one came with the ending
    assert trial.value == curve(0.9)[EPOCHS]
    assert "reason" not in trial.user_attrs
    for epoch in range(1, EPOCHS + 1):
        stored = dict(trial.user_attrs[f"epoch/{epoch}"])
        assert stored.pop("timestamp_ms") > 1e12
        assert stored == result_of(epoch, EPOCHS, 0.9)["metrics"]


@every_sampler
@every_scheduler
def test_stopped_by_the_scheduler(tmp_path: Path, sampler: str, scheduler: str) -> None:
    with searching(tmp_path, 8, sampler=sampler, scheduler=scheduler) as search:
        for level in (0.9, 0.91, 0.92):
            assert search.run_trial(level).state == TrialState.COMPLETE
        poor = [search.run_trial(0.6) for _ in range(4)]
        assert search.run_trial(0.95).state == TrialState.COMPLETE
    stopped = [trial for trial in poor if trial.state == TrialState.PRUNED]
    # Hyperband lets some trials run to the end whatever they do.
    least, most = {"none": (0, 0), "hyperband": (1, 4)}.get(scheduler, (4, 4))
    assert least <= len(stopped) <= most
    for trial in stopped:
        last = max(trial.intermediate_values)
        assert last < EPOCHS
        assert trial.intermediate_values == curve(0.6, last)
        assert trial.value == curve(0.6)[last]
        assert trial.user_attrs["reason"] == f"stopped by the scheduler after epoch {last}"
    assert all(t.state == TrialState.COMPLETE for t in poor if t not in stopped)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_stopped_though_the_search_was_killed_before_it_was_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    def die(*args: Any, **options: Any) -> None:
        raise StorageLost("killed")

    with searching(tmp_path, 6, scheduler=scheduler, slots=1) as search:
        for _ in range(4):
            search.run_trial(0.9)
        monkeypatch.setattr(search.studies["fan"], "finish", die)
        with pytest.raises(StorageLost):
            search.run_trial(0.5)
        (left,) = (t for t in search.studies["fan"].trials() if not t.state.is_finished())
    last = max(left.intermediate_values)
    assert last < EPOCHS
    with searching(tmp_path, 6, scheduler=scheduler, slots=1) as search:
        trial = search.tune.start()
        assert trial is not None
        assert not search.tune.report(trial, result_of(last, EPOCHS, 0.5))  # from the checkpoint
        ended = search.studies["fan"].trial(left.number)
    assert ended.state == TrialState.PRUNED
    assert ended.user_attrs["reason"] == f"stopped by the scheduler after epoch {last}"


@every_sampler
@every_scheduler
def test_ended_by_its_own_patience(tmp_path: Path, sampler: str, scheduler: str) -> None:
    """Its last report, final before the last epoch, is that of its best epoch."""
    with searching(tmp_path, 2, sampler=sampler, scheduler=scheduler) as search:
        trial = search.tune.start()
        assert trial is not None
        assert search.tune.report(trial, result_of(1, EPOCHS, 0.9))
        best = result_of(1, EPOCHS, 0.9)
        search.tune.report(trial, best | {"epoch": 2, "is_final": True, "done": True})
        ended = search.studies["fan"].trial(0)
        assert search.run_trial(0.9).state == TrialState.COMPLETE
    assert ended.state == TrialState.COMPLETE
    assert ended.value == best["objective"]
    assert list(ended.intermediate_values) == [1, 2]


@every_sampler
@every_scheduler
def test_failed(tmp_path: Path, sampler: str, scheduler: str) -> None:
    with searching(tmp_path, 2, sampler=sampler, scheduler=scheduler) as search:
        trial = search.tune.start()
        assert trial is not None
        assert search.tune.report(trial, result_of(1, EPOCHS, 0.9))
        search.tune.report(trial, {"failure": "crash: ValueError: x", "done": True})
        failed = search.studies["fan"].trial(0)
        assert search.run_trial(0.9).state == TrialState.COMPLETE
    assert failed.state == TrialState.FAIL
    assert failed.value is None
    assert failed.intermediate_values == curve(0.9, 1)
    assert failed.user_attrs["reason"] == "crash: ValueError: x"


@every_sampler
@every_scheduler
def test_out_of_memory(tmp_path: Path, sampler: str, scheduler: str) -> None:
    with searching(tmp_path, 2, sampler=sampler, scheduler=scheduler) as search:
        trial = search.tune.start()
        assert trial is not None
        search.tune.report(trial, {"failure": "out of memory: 8 GiB", "done": True})
        failed = search.studies["fan"].trial(0)
        assert search.run_trial(0.9).state == TrialState.COMPLETE
        assert search.tune.start() is None
        assert search.studies["fan"].count("failed") == 1
        assert search.studies["fan"].count("pruned") == 0
    assert failed.constraints == {"memory": 1.0}
    assert failed.user_attrs["reason"] == "out of memory: 8 GiB"


@every_sampler
@every_scheduler
@pytest.mark.parametrize(("epoch", "objective"), [(1, math.nan), (EPOCHS, math.inf)])
def test_an_objective_that_is_no_number(
    tmp_path: Path, sampler: str, scheduler: str, epoch: int, objective: float
) -> None:
    with searching(tmp_path, 3, sampler=sampler, scheduler=scheduler) as search:
        search.run_trial(0.8)
        trial = search.tune.start()
        assert trial is not None
        for good in range(1, epoch):
            assert search.tune.report(trial, result_of(good, EPOCHS, 0.9))
        broken = result_of(epoch, EPOCHS, 0.9) | {"objective": objective, "val_auc": objective}
        assert not search.tune.report(trial, broken)  # not an epoch more is spent on it
        failed = search.studies["fan"].trial(1)
        assert search.run_trial(0.95).state == TrialState.COMPLETE
    assert failed.state == TrialState.FAIL
    assert failed.intermediate_values == curve(0.9, epoch - 1)
    assert failed.user_attrs["reason"] == f"non-finite: objective {objective} in epoch {epoch}"


@every_sampler
@every_scheduler
def test_worker_lost_and_retried(tmp_path: Path, sampler: str, scheduler: str) -> None:
    with searching(tmp_path, 1, sampler=sampler, scheduler=scheduler) as search:
        trial = search.tune.start()
        assert trial is not None
        search.tune.report(trial, result_of(1, EPOCHS, 0.9))
        search.tune.report(trial, result_of(2, EPOCHS, 0.9))
        before = search.studies["fan"].trial(0)
        search.tune.lose_worker(trial, retries_left=True)
        assert search.studies["fan"].trial(0).state == TrialState.RUNNING
        assert search.tune.report(trial, result_of(2, EPOCHS, 0.9))  # again, after the restart
        again = search.studies["fan"].trial(0)
        assert again.user_attrs == before.user_attrs | {"attempts": 2}
        search.tune.report(trial, result_of(3, EPOCHS, 0.9))
        search.tune.report(trial, result_of(4, EPOCHS, 0.9))
        ended = search.studies["fan"].trial(0)
    assert ended.state == TrialState.COMPLETE
    assert ended.intermediate_values == curve(0.9)
    assert ended.user_attrs["attempts"] == 2


@every_sampler
@every_scheduler
def test_worker_lost_for_good(tmp_path: Path, sampler: str, scheduler: str) -> None:
    with searching(tmp_path, 2, sampler=sampler, scheduler=scheduler) as search:
        trial = search.tune.start()
        assert trial is not None
        search.tune.report(trial, result_of(1, EPOCHS, 0.9))
        for retries_left in (True, True, False):
            search.tune.lose_worker(trial, retries_left)
        lost = search.studies["fan"].trial(0)
        assert search.run_trial(0.9).state == TrialState.COMPLETE
    assert lost.state == TrialState.FAIL
    assert lost.intermediate_values == curve(0.9, 1)
    assert lost.user_attrs["attempts"] == 3
    assert lost.user_attrs["reason"] == (
        "worker lost: The actor died unexpectedly before finishing this task. The actor is dead "
        "because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "End of file."
    )


@every_sampler
@every_scheduler
def test_cut_off_and_taken_up_by_the_next_run(tmp_path: Path, sampler: str, scheduler: str) -> None:
    with searching(tmp_path, 3, sampler=sampler, scheduler=scheduler) as search:
        search.run_trial(0.8)
        cut_off = search.run_trial(0.9, epochs=2)
        assert cut_off.state == TrialState.RUNNING
    with searching(tmp_path, 3, sampler=sampler, scheduler=scheduler) as search:
        trial = search.tune.start()
        assert trial is not None
        assert trial.config["number"] == 1
        assert trial.config["params"] == all_params(cut_off)
        assert search.tune.report(trial, result_of(2, EPOCHS, 0.9))  # from the checkpoint, again
        assert search.tune.report(trial, result_of(3, EPOCHS, 0.9))
        assert not search.tune.report(trial, result_of(4, EPOCHS, 0.9))
        ended = search.studies["fan"].trial(1)
        search.run_trial(0.95)
        assert search.tune.start() is None
        assert search.tune.is_finished
        states = [trial.state for trial in search.studies["fan"].trials()]
    assert ended.intermediate_values == curve(0.9)
    assert ended.user_attrs["epoch/1"] == cut_off.user_attrs["epoch/1"]
    assert ended.user_attrs["attempts"] == 2
    assert states == [TrialState.COMPLETE] * 3


def test_a_lost_worker_counts_though_the_run_ends_before_its_trial(tmp_path: Path) -> None:
    """At the end of a run Tune tells the searcher nothing of the trials that it cuts off."""
    with searching(tmp_path, 1) as search:
        trial = search.tune.start()
        assert trial is not None
        search.tune.report(trial, result_of(1, EPOCHS, 0.9))
        search.tune.lose_worker(trial, retries_left=True)
    with searching(tmp_path, 1) as search:
        ended = search.run_trial(0.9)
    assert ended.state == TrialState.COMPLETE
    assert ended.user_attrs["attempts"] == 3


@every_sampler
@every_scheduler
def test_a_whole_search_leaves_nothing_behind(tmp_path: Path, sampler: str, scheduler: str) -> None:
    types = ("fan", "valve")
    with searching(
        tmp_path, 6, sampler=sampler, scheduler=scheduler, machine_types=types
    ) as search:
        live = []
        while not search.tune.is_finished or live:
            while (trial := search.tune.start()) is not None:
                live.append((trial, iter(range(1, EPOCHS + 1))))
            for trial, epochs in live[:]:
                level = level_of(trial.config["params"])
                if not search.tune.report(trial, result_of(next(epochs), EPOCHS, level)):
                    live.remove((trial, epochs))
        for study in search.studies.values():
            trials = study.trials()
            assert [trial.number for trial in trials] == list(range(6))
            assert all(trial.state.is_finished() for trial in trials)
            best = study.best()
            assert best is not None
            assert best.value == max(t.value for t in trials if t.state == TrialState.COMPLETE)


def test_larger_budget_adds_only_the_difference(tmp_path: Path) -> None:
    with searching(tmp_path, 2) as search:
        first = [search.run_trial(0.8), search.run_trial(0.9)]
    with searching(tmp_path, 3) as search:
        assert search.run_trial(0.95).number == 2
        assert search.tune.start() is None
        assert search.tune.is_finished
        assert search.studies["fan"].trials()[:2] == first
    with searching(tmp_path, 1) as search:  # a smaller one takes nothing away
        assert search.tune.start() is None
        assert search.tune.is_finished


def test_rungs_remember_the_trials_of_earlier_runs(tmp_path: Path) -> None:
    with searching(tmp_path, 2) as search:
        search.run_trial(0.9)
    with searching(tmp_path, 2) as search:
        assert search.run_trial(0.6).state == TrialState.PRUNED


def test_machine_types_are_judged_apart_and_take_turns(tmp_path: Path) -> None:
    with searching(tmp_path, 2, machine_types=("fan", "valve")) as search:
        trials = [search.run_trial(level) for level in (0.9, 0.6, 0.95, 0.65)]
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
        order = [(name, number) for name, number, _, epochs in search.recorder.told if epochs == 0]
        assert order == [("fan", 0), ("valve", 0), ("fan", 1), ("valve", 1)]


def test_a_type_that_lags_behind_gets_the_slots(tmp_path: Path) -> None:
    with searching(tmp_path, 2, machine_types=("fan",)) as search:
        search.run_trial(0.9)
        search.run_trial(0.95)
    with searching(tmp_path, 3, machine_types=("fan", "valve"), slots=9) as search:
        served = [search.tune.start() for _ in range(4)]
        assert [trial.config["machine_type"] for trial in served if trial] == [
            "valve",
            "valve",
            "fan",
            "valve",
        ]
        assert search.tune.start() is None
        assert search.tune.is_finished


def test_one_trial_more_than_slots_waits_for_the_next(tmp_path: Path) -> None:
    with searching(tmp_path, 9, slots=2) as search:
        first, second, waiting = (search.tune.start() for _ in range(3))
        assert first is not None
        assert second is not None
        assert waiting is not None
        search.tune.waiting = [waiting]
        assert search.tune.start() is None
        assert not search.tune.is_finished
        search.tune.report(first, {"failure": "crash: x", "done": True})
        assert search.tune.start() is None  # a slot is free, and whoever waits must have it first
        search.tune.waiting = []
        assert search.tune.start() is not None
        assert search.tune.start() is None


def test_a_slot_does_not_wait_for_who_is_not_there(tmp_path: Path) -> None:
    with searching(tmp_path, 9, slots=3) as search:
        started = [search.tune.start() for _ in range(2)]
        search.tune.waiting = [trial for trial in started if trial]
        assert search.tune.start() is not None


def test_a_single_slot_knows_all_before_its_next_trial(tmp_path: Path) -> None:
    with searching(tmp_path, 9, slots=1) as search:
        assert search.tune.start() is not None
        assert search.tune.start() is None


def test_no_more_trials_of_a_type_than_asked_for_at_once(tmp_path: Path) -> None:
    with searching(tmp_path, 9, machine_types=("fan", "valve"), slots=9, parallel=1) as search:
        served = [search.tune.start() for _ in range(3)]
        types = [trial.config["machine_type"] for trial in served if trial is not None]
        assert types == ["fan", "valve"]
        assert not search.tune.is_finished


def test_trials_that_an_earlier_run_left_are_no_more_at_once_either(tmp_path: Path) -> None:
    types = ("fan", "valve")
    with searching(tmp_path, 3, machine_types=types, slots=6, scheduler="none") as search:
        assert all(search.tune.start() for _ in range(6))
    with searching(tmp_path, 3, machine_types=types, slots=6, parallel=1) as search:
        served = [search.tune.start() for _ in range(3)]
        assert [t.config["machine_type"] for t in served if t is not None] == ["fan", "valve"]
        search.tune.report(served[0], {"failure": "crash: x", "done": True})
        assert search.tune.start().config["number"] == 1
        assert search.tune.start() is None
        assert not search.tune.is_finished


def test_a_deterministic_search_waits_for_what_the_next_trial_is_to_know(tmp_path: Path) -> None:
    with searching(tmp_path, 9, slots=9, parallel=2, lag=2) as search:
        first, second = search.tune.start(), search.tune.start()
        assert first is not None
        assert second is not None
        search.tune.report(second, {"failure": "crash: x", "done": True})
        assert search.tune.start() is None  # there is a slot, but trial 2 is to know trial 0
        search.tune.report(first, {"failure": "crash: x", "done": True})
        assert search.tune.start() is not None


def test_a_grid_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    with searching(tmp_path, 99, sampler="grid", scheduler="none") as search:
        n = 0
        while (trial := search.tune.start()) is not None:
            search.tune.report(trial, {"failure": "crash: x", "done": True})
            n += 1
        assert search.tune.is_finished
    assert n == 4 * 3  # rates, and attention off or with one of two expansions


def test_observers_see_what_the_storage_already_has(tmp_path: Path) -> None:
    with searching(tmp_path, 1) as search:
        search.run_trial(0.9)
        running = [("fan", 0, TrialState.RUNNING, epochs) for epochs in range(EPOCHS)]
        assert search.recorder.told == [*running, ("fan", 0, TrialState.COMPLETE, EPOCHS)]


def test_tune_finds_nothing_to_pickle(tmp_path: Path) -> None:
    with searching(tmp_path, 1) as search:
        assert search.searcher.__getstate__() == {}
        assert pickle.dumps(search.searcher)


def test_no_snapshot_is_written_that_tune_could_copy_half(tmp_path: Path) -> None:
    with searching(tmp_path / "study", 1) as search:
        SnapshotFreeGenerator(search.searcher).save_to_dir(str(tmp_path), "session")
        assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_a_cached_reading_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("search.searcher.time.monotonic", lambda: now)
    readings: Any = iter([4, 8])
    get = cached(lambda: next(readings), seconds=1.0)
    assert [get(), get()] == [4, 4]
    now = 1.5
    assert [get(), get()] == [8, 8]
