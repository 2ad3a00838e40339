"""What a person sees of a running search."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.progress import Progress
from search.storages import open_storage
from search.studies import TypeStudy
from tests.doubles import space_file
from tests.study_fixtures import new_study

TYPES = ("fan", "valve")


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[dict[str, TypeStudy]]:
    space = space_file()
    with open_storage(tmp_path / "s") as storage:
        yield {name: new_study(storage, name, space=space) for name in TYPES}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("search.progress.time.monotonic", lambda: now[0])
    return now


def start(study: TypeStudy, *objectives: float) -> int:
    number = study.ask().number
    for epoch, objective in enumerate(objectives, 1):
        study.record_epoch(number, epoch, {}, objective)
    return number


def test_a_log_gets_a_line_per_ended_trial(
    studies: dict[str, TypeStudy], clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fan = studies["fan"]
    with Progress(studies, 4, 3, lambda: "0.50 core-hours spent") as progress:
        start(fan, 0.6)
        progress.on_trial("fan", fan.trial(0))
        assert caplog.messages == []  # it runs
        clock[0] = 10.0
        progress.on_trial("fan", fan.finish(0, TrialState.COMPLETE, value=0.6))
        start(fan, 0.5, 0.55)
        progress.on_trial("fan", fan.finish(1, TrialState.PRUNED, reason="stopped"))
        start(fan)
        progress.on_trial("fan", fan.finish(2, TrialState.FAIL, reason="crash: x"))
    assert caplog.messages == [
        "fan trial 0 complete, val_auc 0.600 after 1 of 3 epochs (1 of 4 trials, 70 s left)",
        "fan trial 1 pruned, val_auc 0.550 after 2 of 3 epochs (2 of 4 trials, 30 s left)",
        "fan trial 2 failed after 0 of 3 epochs (3 of 4 trials, 17 s left): crash: x",
    ]


def test_a_terminal_shows_a_table(
    studies: dict[str, TypeStudy],
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    caplog.set_level(logging.INFO)
    fan = studies["fan"]
    with Progress(studies, 4, 3, lambda: "0.50 core-hours spent") as progress:
        start(fan, 0.6)
        progress.on_trial("fan", fan.finish(0, TrialState.COMPLETE, value=0.6))
        start(fan, 0.5)
        progress.on_trial("fan", fan.finish(1, TrialState.PRUNED))
        start(fan, 0.0)
        progress.on_trial("fan", fan.trial(2))
        clock[0] = 95.0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert caplog.messages == []  # the table says it
    last = shown.err.splitlines()
    title = [line for line in last if "elapsed" in line][-1]
    assert "1:35 elapsed, 5 min left, 0.50 core-hours spent" in title
    row = [line for line in last if "fan" in line][-1]
    assert [cell.strip() for cell in row.strip(" │").split("│")] == [
        "fan",
        "2/4",
        "1",
        "1",
        "0",
        "1",
        "0",
        "val_auc 0.600 (#0)",
        "#2 1/3 0.000",
    ]


def test_brackets_in_a_name_are_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with open_storage(tmp_path / "s") as storage:
        study = new_study(storage, "fan[old]", space=space_file())
        with Progress({"fan[old]": study}, 4, 3, lambda: ""):
            pass
    assert "fan[old]" in capsys.readouterr().err


def test_time_left_counts_from_this_run_and_never_below_nothing(
    studies: dict[str, TypeStudy], clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fan = studies["fan"]
    for number in range(3):
        start(fan, 0.6)
        fan.finish(number, TrialState.COMPLETE, value=0.6)
    # asked for 2 now: fan already has more, valve lacks both
    progress = Progress(studies, 2, 3, lambda: "0.50 core-hours spent")
    valve = studies["valve"]
    for number in range(2):
        clock[0] += 20.0
        start(valve, 0.7)
        progress.on_trial("valve", valve.finish(number, TrialState.COMPLETE, value=0.7))
    assert "(1 of 2 trials, 20 s left)" in caplog.messages[0]
    assert "(2 of 2 trials, 0 s left)" in caplog.messages[1]


def test_trials_that_wake_up_leave_no_time_below_nothing(
    studies: dict[str, TypeStudy], clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fan = studies["fan"]
    for number in range(2):
        start(fan, 0.6)
        fan.pause(number)
    progress = Progress(studies, 4, 3, lambda: "0.50 core-hours spent")
    clock[0] = 20.0
    for number in range(2):
        fan.go_on(number)
    progress.on_trial("fan", fan.finish(0, TrialState.COMPLETE, value=0.6))
    assert "(1 of 4 trials, ? left)" in caplog.messages[0]
