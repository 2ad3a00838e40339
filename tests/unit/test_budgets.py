"""Hours spent and limits on what runs at once."""

from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.config import SpaceError, load_space
from search.failures import is_out_of_memory, reason_of_loss
from search.launch import HoursStopper, are_hours_spent, spent_hours
from search.studies import TypeStudy
from search.study import _say_what_is_left, _spending
from tests.doubles import space_file
from tests.study_fixtures import new_study

RESOURCES = {"cpu": 1.0, "gpu": 0.0}


def timed_study(*seconds: float, machine_type: str = "fan") -> TypeStudy:
    """A trial that took so many seconds for each of its epochs, and one that told nothing."""
    study = new_study(machine_type=machine_type)
    number = study.ask().number
    for epoch, time_s in enumerate(seconds, 1):
        study.record_epoch(number, epoch, {"seconds": time_s}, 0.5)
    study.finish(number, TrialState.PRUNED, reason="stopped")
    study.ask()
    return study


def test_hours_are_of_gpus_where_trials_have_a_share_else_of_cores() -> None:
    study = timed_study(1800.0, 5400.0)
    assert spent_hours(study, {"cpu": 2.0, "gpu": 0.0}) == pytest.approx({"core": 4.0})
    assert spent_hours(study, {"cpu": 2.0, "gpu": 0.25}) == pytest.approx({"GPU": 0.5})


def test_what_was_spent_stays_what_it_was_whatever_later_runs_hold() -> None:
    study = new_study()
    number = study.ask().number
    whole, shared, none = ({"cpu": 2.0, "gpu": gpu} for gpu in (1.0, 0.25, 0.0))
    study.note("resources", whole)
    for epoch in (1, 2):
        study.record_epoch(number, epoch, {"seconds": 3600.0}, 0.5)
    study.note("resources", shared)
    assert spent_hours(study, shared) == {"GPU": 2.0}
    assert not are_hours_spent({"fan": study}, 2.1, none)
    assert _spending({"fan": study}, 8.0, none) == "2.00 of 8 GPU-hours spent"
    study.record_epoch(number, 3, {"seconds": 3600.0}, 0.5)
    study.note("resources", none)
    study.record_epoch(number, 4, {"seconds": 3600.0}, 0.5)
    assert spent_hours(study, none) == {"GPU": 2.25, "core": 2.0}
    assert are_hours_spent({"fan": study}, 4.25, none)
    assert _spending({"fan": study}, None, none) == "4.25 GPU- and core-hours spent"


@pytest.mark.parametrize(("hours", "is_over"), [(None, False), (2.1, False), (2.0, True)])
def test_a_search_ends_when_all_types_together_have_spent_their_hours(
    hours: float | None, is_over: bool
) -> None:
    studies = {name: timed_study(3600.0, machine_type=name) for name in ("fan", "valve")}
    stopper = HoursStopper(studies, hours, {"cpu": 1.0, "gpu": 0.0})
    assert stopper.stop_all() is is_over
    assert not stopper("fan-0", {})


@pytest.mark.parametrize(
    ("hours", "remedy"),
    [
        (None, "3 trials are unfinished: repeat the command to continue"),
        (1.5, "3 trials are unfinished: repeat the command to continue"),
        (
            1.0,
            "3 trials are unfinished, for the 1 hours of study.hours are spent: raise it in the "
            "space file and repeat the command to continue",
        ),
    ],
)
def test_it_is_said_how_unfinished_trials_may_go_on(
    hours: float | None, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    space = space_file(trials=4, study={"hours": hours})
    _say_what_is_left({"fan": timed_study(3600.0)}, space, RESOURCES, is_over=False)
    assert caplog.messages == [remedy]


def test_a_worker_that_was_killed_for_its_memory_is_told_from_one_that_was_lost() -> None:
    killed = (
        "Failure # 1 (occurred at noon)\nThe actor died: 1 worker(s) were killed due to the node "
        "running low on memory.\n"
    )
    assert is_out_of_memory(reason_of_loss(killed))
    assert not is_out_of_memory(reason_of_loss("Failure # 1 (occurred at noon)\nIt died.\n"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("study: {trials: 4, epochs: 2, deterministic: true}", "set study.parallel"),
        ("study: {trials: 4, epochs: 2, hours: 0}", "study.hours"),
        ("study: {trials: 4, epochs: 2, cost: price}", "study.cost"),
        (
            "study: {trials: 4, epochs: 2, cost: latency_ms}\nsampler: {name: cmaes}",
            "second objective, which sampler cmaes cannot weigh",
        ),
        (
            "study: {trials: 4, epochs: 2}\nsampler: {name: grid}",
            "parameters.train.lr needs a step, for the sampler is grid",
        ),
        (
            "study: {trials: 4, epochs: 2}\nconstraints: {latency: 5}",
            "constraints.latency is no known key",
        ),
        ("study: {trials: 4, epochs: 2}\nconstraints: {parameters: 0}", "constraints.parameters"),
        (
            "study: {trials: 4, epochs: 2}\nscheduler: {name: median, grace_epochs: 3}",
            "grace_epochs must be <= study.epochs",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, section: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"{section}\nparameters:\n  train.lr: {{kind: float, low: 0.1, high: 0.2}}\n")
    with pytest.raises(SpaceError, match=message):
        load_space(path)


@pytest.mark.parametrize(
    ("is_over", "said"),
    [(False, ["the winner is not chosen yet: repeat the command to continue"]), (True, [])],
)
def test_who_interrupts_after_the_last_trial_is_told_that_the_winner_is_missing(
    is_over: bool, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    study = new_study()
    study.finish(study.ask().number, TrialState.COMPLETE, value=0.9)
    _say_what_is_left({"fan": study}, space_file(trials=1), RESOURCES, is_over)
    assert caplog.messages == said
