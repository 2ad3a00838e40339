"""Schedulers by name, and the one that keeps machine types apart."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
from optuna.trial import TrialState, create_trial
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from search.config import SchedulerConfig
from search.schedulers import PerTypeScheduler, build_scheduler
from tests.doubles import LOSS, FakeTrial, result_of

EPOCHS = 4
ASHA = SchedulerConfig(name="asha", reduction_factor=2.0)


@pytest.fixture
def asha() -> AsyncHyperBandScheduler:
    return build_scheduler(ASHA, "val_auc", EPOCHS)


@pytest.fixture
def scheduler(asha: AsyncHyperBandScheduler) -> PerTypeScheduler:
    return PerTypeScheduler({"fan": asha, "valve": build_scheduler(ASHA, "val_auc", EPOCHS)})


def add(scheduler: PerTypeScheduler, machine_type: str, trial_id: str) -> FakeTrial:
    config = {"machine_type": machine_type}
    trial = FakeTrial("double", config=config, trial_id=trial_id, stub=True)
    scheduler.on_trial_add(None, trial)
    return trial


def decide(scheduler: PerTypeScheduler, trial: Trial, epoch: int, level: float) -> str:
    return scheduler.on_trial_result(None, trial, result_of(epoch, EPOCHS, level))


def stored(levels: dict[int, float], state: TrialState = TrialState.RUNNING) -> Any:
    values = {
        epoch: result_of(epoch, EPOCHS, level)["objective"] for epoch, level in levels.items()
    }
    value = 0.5 if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, intermediate_values=values)


@pytest.mark.parametrize("name", get_args(SchedulerConfig.model_fields["name"].annotation))
def test_every_name_builds_a_scheduler(name: str) -> None:
    config = SchedulerConfig.model_validate({"name": name})
    assert isinstance(build_scheduler(config, "val_auc", EPOCHS), TrialScheduler)


def test_a_trial_that_falls_behind_its_own_type_is_stopped(scheduler: PerTypeScheduler) -> None:
    good, poor = add(scheduler, "fan", "a"), add(scheduler, "fan", "b")
    other = add(scheduler, "valve", "c")
    assert decide(scheduler, good, 1, 0.9) == TrialScheduler.CONTINUE
    assert decide(scheduler, poor, 1, 0.6) == TrialScheduler.STOP
    assert decide(scheduler, other, 1, 0.6) == TrialScheduler.CONTINUE
    assert scheduler.stopped == {"b"}


def test_a_trial_that_reports_again_is_not_judged_again(scheduler: PerTypeScheduler) -> None:
    trial = add(scheduler, "fan", "a")
    assert decide(scheduler, trial, 1, 0.6) == TrialScheduler.CONTINUE
    assert decide(scheduler, add(scheduler, "fan", "b"), 1, 0.9) == TrialScheduler.CONTINUE
    scheduler.on_trial_add(None, trial)  # its worker was lost
    assert decide(scheduler, trial, 1, 0.6) == TrialScheduler.CONTINUE


def test_replayed_trials_fill_the_rungs(scheduler: PerTypeScheduler) -> None:
    scheduler.replay("fan", stored({1: 0.9, 2: 0.9}, TrialState.COMPLETE), "fan-0")
    assert decide(scheduler, add(scheduler, "fan", "a"), 1, 0.6) == TrialScheduler.STOP
    assert decide(scheduler, add(scheduler, "valve", "b"), 1, 0.6) == TrialScheduler.CONTINUE


def test_a_replayed_trial_goes_on_under_the_same_id(scheduler: PerTypeScheduler) -> None:
    scheduler.replay("fan", stored({1: 0.9, 2: 0.9, 4: 0.9}, TrialState.COMPLETE), "fan-0")
    scheduler.replay("fan", stored({1: 0.6}), "a")
    trial = add(scheduler, "fan", "a")
    assert decide(scheduler, trial, 1, 0.6) == TrialScheduler.CONTINUE  # that was decided before
    assert decide(scheduler, trial, 2, 0.6) == TrialScheduler.STOP


def test_ended_and_replayed_trials_are_forgotten(
    scheduler: PerTypeScheduler, asha: AsyncHyperBandScheduler
) -> None:
    scheduler.replay("fan", stored({1: 0.9}), "fan-0")
    for trial_id, last in (
        ("complete", result_of(EPOCHS, EPOCHS, 0.9)),
        ("failed", {"failure": "crash: x", "done": True}),
        ("broken", result_of(1, EPOCHS, 0.9) | {"objective": math.nan}),
    ):
        trial = add(scheduler, "fan", trial_id)
        scheduler.on_trial_complete(None, trial, last)
    assert asha._trial_info == {}


def test_an_objective_that_is_no_number_stops_a_trial_and_spoils_no_rung(
    scheduler: PerTypeScheduler,
) -> None:
    broken = add(scheduler, "fan", "a")
    result = result_of(1, EPOCHS, 0.9) | {"objective": math.nan, "val_auc": math.nan}
    assert scheduler.on_trial_result(None, broken, result) == TrialScheduler.STOP
    scheduler.on_trial_complete(None, broken, result)
    assert scheduler.stopped == set()
    assert decide(scheduler, add(scheduler, "fan", "b"), 1, 0.6) == TrialScheduler.CONTINUE
    assert decide(scheduler, add(scheduler, "fan", "c"), 1, 0.55) == TrialScheduler.STOP


def test_each_lost_worker_is_remembered(scheduler: PerTypeScheduler, tmp_path: Path) -> None:
    trial = add(scheduler, "fan", "a")
    trial.error_file = str(tmp_path / "error.txt")
    for number in (1, 2):
        with Path(trial.error_file).open("a") as file:
            file.write(f"Failure # {number} (occurred at noon)\n{LOSS}\n")
        scheduler.on_trial_error(None, trial)
    assert len(scheduler.losses["a"]) == 2
    assert len(set(scheduler.losses["a"])) == 1
    assert scheduler.losses["a"][0].startswith("worker lost: The actor died unexpectedly")
    assert scheduler.losses["a"][0].endswith("Worker exit detail: End of file.")


def test_the_first_trial_that_waits_is_run(scheduler: PerTypeScheduler) -> None:
    trials = [add(scheduler, "fan", name) for name in ("a", "b", "c")]
    trials[0].set_status(Trial.RUNNING)

    class Controller:
        @staticmethod
        def get_trials() -> list[FakeTrial]:
            return trials

    assert scheduler.choose_trial_to_run(Controller) is trials[1]
    for trial in trials:
        trial.set_status(Trial.TERMINATED)
    assert scheduler.choose_trial_to_run(Controller) is None
    assert scheduler.debug_string() == "fan, valve"
