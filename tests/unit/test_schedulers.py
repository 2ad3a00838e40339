"""The rules that stop trials early, and the scheduler that keeps machine types apart."""

import math
from pathlib import Path
from typing import get_args

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from search.config import SchedulerConfig
from search.hangs import HangWatch
from search.schedulers import RULES, StudyScheduler
from search.studies import TypeStudy
from tests.doubles import LOSS, FakeTrial, result_of
from tests.study_fixtures import new_study

EPOCHS = 9
ASHA = SchedulerConfig(name="asha", reduction_factor=3.0)


def curves(*levels: float, epochs: int = EPOCHS) -> list[FrozenTrial]:
    """Trials that stay at a level, numbered as given."""
    found = []
    for number, level in enumerate(levels):
        values = dict.fromkeys(range(1, epochs + 1), level)
        trial = create_trial(state=TrialState.COMPLETE, value=level, intermediate_values=values)
        trial.number = number
        found.append(trial)
    return found


def is_stopped(
    name: str, curve: dict[int, float], others: list[FrozenTrial], number: int = 99, grace: int = 1
) -> bool:
    config = SchedulerConfig.model_validate(
        {"name": name, "reduction_factor": 3.0, "grace_epochs": grace}
    )
    return RULES[name](config, EPOCHS, number, curve, others)


def test_every_name_is_a_rule() -> None:
    assert set(get_args(SchedulerConfig.model_fields["name"].annotation)) == set(RULES)


def test_asha_keeps_the_best_third_of_those_that_reached_a_rung() -> None:
    others = curves(0.6, 0.7, 0.8, 0.9)
    assert is_stopped("asha", {1: 0.79}, others)  # the quantile of 2/3 is 0.8
    assert not is_stopped("asha", {1: 0.8}, others)
    assert not is_stopped("asha", {1: 0.9, 2: 0.1}, others)  # no rung
    assert is_stopped("asha", {1: 0.9, 2: 0.9, 3: 0.1}, others)
    assert not is_stopped("asha", dict.fromkeys(range(1, 10), 0.1), others)  # it is at its end
    assert not is_stopped("asha", {1: 0.1}, [])
    assert not is_stopped("asha", {3: 0.1}, curves(0.9, epochs=2))  # nobody has got there


def test_grace_moves_the_rungs() -> None:
    others = curves(0.9)
    assert not is_stopped("asha", {1: 0.1}, others, grace=2)
    assert is_stopped("asha", {1: 0.1, 2: 0.1}, others, grace=2)
    assert is_stopped("asha", dict.fromkeys(range(1, 7), 0.1), others, grace=2)


def test_the_median_rule_compares_the_best_so_far_with_running_means() -> None:
    others = curves(0.6, 0.7, 0.8)
    assert is_stopped("median", {1: 0.69}, others)
    assert not is_stopped("median", {1: 0.7}, others)
    assert not is_stopped("median", {1: 0.7, 2: 0.1}, others)  # its best was as good
    assert not is_stopped("median", {1: 0.1}, others[:2])  # a median of two says little
    assert not is_stopped("median", {1: 0.1}, others, grace=2)


def test_hyperband_spares_some_trials_at_the_first_rungs() -> None:
    """9 epochs and a factor of 3: brackets from epoch 1, from epoch 3, and never."""
    numbers = range(300)
    others = curves(*[0.9] * 300)
    at_1 = {n for n in numbers if is_stopped("hyperband", {1: 0.1}, others, number=n)}
    at_3 = {n for n in numbers if is_stopped("hyperband", {1: 1, 3: 0.1}, others, number=n)}
    assert at_1 < at_3 < set(numbers)
    # JMLR 2018: 9, 5 and 3 trials start in the three brackets.
    shares = [len(at_1) / 300, (len(at_3) - len(at_1)) / 300]
    assert shares == pytest.approx([3 / 5.5, 1.5 / 5.5], abs=0.1)


def test_a_bracket_judges_among_its_own() -> None:
    bracket = {
        n: is_stopped("hyperband", {1: 0.1}, curves(*[0.9] * 20), number=n) for n in range(20)
    }
    first = [n for n, judged in bracket.items() if judged]
    others = [t for t in curves(*[0.9] * 20) if t.number not in first]
    assert not is_stopped("hyperband", {1: 0.1}, others, number=first[0])


@pytest.fixture
def studies() -> dict[str, TypeStudy]:
    storage = InMemoryStorage()
    return {name: new_study(storage, name) for name in ("fan", "valve")}


@pytest.fixture
def scheduler(studies: dict[str, TypeStudy]) -> StudyScheduler:
    return StudyScheduler(studies, ASHA, EPOCHS)


def start(studies: dict[str, TypeStudy], machine_type: str, trial_id: str) -> FakeTrial:
    trial = studies[machine_type].ask()
    assert trial is not None
    config = {"machine_type": machine_type, "number": trial.number}
    return FakeTrial("double", config=config, trial_id=trial_id, stub=True)


def report(
    scheduler: StudyScheduler,
    studies: dict[str, TypeStudy],
    trial: FakeTrial,
    epoch: int,
    level: float,
) -> str:
    """As Tune: the scheduler first, then the storage."""
    result = result_of(epoch, EPOCHS, level)
    decision = scheduler.on_trial_result(None, trial, result)
    study = studies[trial.config["machine_type"]]
    study.record_epoch(trial.config["number"], epoch, {}, result["objective"])
    return decision


def test_a_trial_that_falls_behind_its_own_type_is_stopped(
    scheduler: StudyScheduler, studies: dict[str, TypeStudy]
) -> None:
    good, poor = start(studies, "fan", "a"), start(studies, "fan", "b")
    other = start(studies, "valve", "c")
    assert report(scheduler, studies, good, 1, 0.9) == TrialScheduler.CONTINUE
    assert report(scheduler, studies, poor, 1, 0.6) == TrialScheduler.STOP
    assert report(scheduler, studies, other, 1, 0.6) == TrialScheduler.CONTINUE
    assert scheduler.stopped == {"b"}


def test_a_trial_that_reports_again_is_not_judged_again(
    scheduler: StudyScheduler, studies: dict[str, TypeStudy]
) -> None:
    trial = start(studies, "fan", "a")
    assert report(scheduler, studies, trial, 1, 0.6) == TrialScheduler.CONTINUE
    assert report(scheduler, studies, start(studies, "fan", "b"), 1, 0.9) == "CONTINUE"
    assert report(scheduler, studies, trial, 1, 0.6) == TrialScheduler.CONTINUE


def test_a_new_scheduler_judges_by_what_is_stored(
    scheduler: StudyScheduler, studies: dict[str, TypeStudy]
) -> None:
    report(scheduler, studies, start(studies, "fan", "a"), 1, 0.9)
    renewed = StudyScheduler(studies, ASHA, EPOCHS)
    assert report(renewed, studies, start(studies, "fan", "b"), 1, 0.6) == TrialScheduler.STOP


def test_an_objective_that_is_no_number_stops_a_trial_and_spoils_no_rung(
    scheduler: StudyScheduler, studies: dict[str, TypeStudy]
) -> None:
    result = result_of(1, EPOCHS, 0.9) | {"objective": math.nan, "val_auc": math.nan}
    broken = start(studies, "fan", "a")
    assert scheduler.on_trial_result(None, broken, result) == TrialScheduler.STOP
    scheduler.on_trial_complete(None, broken, result)
    assert scheduler.stopped == set()
    assert report(scheduler, studies, start(studies, "fan", "b"), 1, 0.6) == "CONTINUE"
    assert report(scheduler, studies, start(studies, "fan", "c"), 1, 0.55) == TrialScheduler.STOP


def test_each_lost_worker_is_remembered(
    scheduler: StudyScheduler, studies: dict[str, TypeStudy], tmp_path: Path
) -> None:
    trial = start(studies, "fan", "a")
    trial.error_file = str(tmp_path / "error.txt")
    for number in (1, 2):
        with Path(trial.error_file).open("a") as file:
            file.write(f"Failure # {number} (occurred at noon)\n{LOSS}\n")
        scheduler.on_trial_error(None, trial)
    assert len(scheduler.losses["a"]) == 2
    assert len(set(scheduler.losses["a"])) == 1
    assert scheduler.losses["a"][0].startswith("worker lost: The actor died unexpectedly")
    assert scheduler.losses["a"][0].endswith("Worker exit detail: End of file.")


def test_tune_keeps_no_history_of_a_trial_that_ended(
    scheduler: StudyScheduler, studies: dict[str, TypeStudy]
) -> None:
    trial = start(studies, "fan", "a")
    trial.run_metadata.update_metric("val_auc", 0.5)
    assert trial.metric_analysis
    scheduler.on_trial_complete(None, trial, {})
    assert not trial.metric_analysis
    assert not trial.metric_n_steps


def test_the_last_trial_that_waits_is_run(
    scheduler: StudyScheduler, studies: dict[str, TypeStudy]
) -> None:
    trials = [start(studies, "fan", name) for name in ("a", "b", "c")]

    class Controller:
        @staticmethod
        def get_live_trials() -> list[FakeTrial]:
            return trials

    for trial in trials:
        scheduler.on_trial_add(None, trial)
    assert scheduler.choose_trial_to_run(Controller) is trials[2]
    assert scheduler.n_waiting == 3
    for trial in (trials[0], trials[2]):
        trial.set_status(Trial.RUNNING)
    assert scheduler.choose_trial_to_run(Controller) is trials[1]
    trials[0].set_status(Trial.PENDING)  # its worker was lost
    scheduler.on_trial_add(None, trials[0])
    assert scheduler.choose_trial_to_run(Controller) is trials[0]
    for trial in trials:
        trial.set_status(Trial.TERMINATED)
    assert scheduler.choose_trial_to_run(Controller) is None
    assert scheduler.n_waiting == 0
    assert scheduler.debug_string() == "asha"


def test_an_epoch_that_is_a_trial_s_only_one_tells_how_long_epochs_take() -> None:
    """Tune hands it to `on_trial_complete` alone; without it a worker that hangs is waited for."""
    studies = {"fan": new_study()}
    now, killed = [0.0], list[str]()
    watch = HangWatch(None, lambda trial: killed.append(trial.trial_id), lambda: now[0])
    scheduler = StudyScheduler(studies, ASHA, 1, watch)
    failed, done, hung = (start(studies, "fan", name) for name in ("failed", "done", "hung"))
    hung.status = Trial.RUNNING

    def wait() -> None:
        for _ in range(800):
            now[0] += 5.0
            watch.look([hung])

    took = {"time_this_iter_s": 30.0}
    scheduler.on_trial_complete(None, failed, {"failure": "crash: x", "done": True} | took)
    wait()
    assert killed == []  # nobody knows yet how long an epoch takes
    scheduler.on_trial_complete(None, done, result_of(1, 1, 0.9) | took)
    wait()
    assert set(killed) == {"hung"}
