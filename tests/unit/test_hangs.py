"""When a trial is taken to hang."""

import math
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from ray.tune.experiment import Trial

from search.failures import longest_silence_s
from search.hangs import HangWatch


@dataclass
class OneTrial:
    trial_id: str = "a"
    status: str = Trial.RUNNING


@dataclass
class Watched:
    """A watch with a clock of our own."""

    stated_minutes: float | None
    now: float = 0.0
    killed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = HangWatch(
            self.stated_minutes,
            kill=lambda trial: self.killed.append(trial.trial_id),
            clock=lambda: self.now,
        )

    def wait(self, seconds: float, *trials: OneTrial, step: float = 1.0) -> None:
        for _ in range(round(seconds / step)):
            self.now += step
            self.watch.look(trials)


def test_the_default_is_an_hour_or_twenty_epochs_and_none_before_the_first() -> None:
    assert longest_silence_s(None, 0.0) == math.inf
    assert longest_silence_s(None, 1.0) == 3600
    assert longest_silence_s(None, 600.0) == 12000
    assert longest_silence_s(5.0, 0.0) == 300
    assert longest_silence_s(5.0, 600.0) == 300


def test_who_is_silent_for_too_long_is_ended_once_and_for_a_reason() -> None:
    watched, silent, talking = Watched(1.0), OneTrial("silent"), OneTrial("talking")
    for _ in range(3):
        watched.wait(20, silent, talking)
        watched.watch.heard(talking, 20.0)
    assert watched.killed == []
    watched.wait(2, silent, talking)
    assert watched.killed == ["silent"]
    assert watched.watch.reason(silent) == "hung: no report for 60 s"
    assert watched.watch.reason(silent) is None
    assert watched.watch.reason(talking) is None


def test_waiting_for_a_worker_is_no_silence() -> None:
    watched, trial = Watched(1.0), OneTrial(status=Trial.PENDING)
    watched.wait(1000, trial)
    trial.status = Trial.RUNNING
    watched.wait(50, trial)
    trial.status = Trial.PENDING  # its worker was lost
    watched.wait(1, trial)
    trial.status = Trial.RUNNING
    watched.wait(50, trial)
    assert watched.killed == []


def test_a_driver_that_looked_away_has_heard_nothing_either() -> None:
    watched, trial = Watched(1.0), OneTrial()
    watched.wait(1, trial)
    watched.now += 7200
    watched.wait(40, trial)
    assert watched.killed == []


def test_without_a_setting_the_first_epoch_may_take_a_day() -> None:
    watched, trial = Watched(None), OneTrial()
    watched.wait(86400, trial, step=5.0)
    watched.watch.heard(trial, 300.0)
    watched.wait(6000, trial, step=5.0)
    assert watched.killed == []
    watched.wait(10, trial, step=5.0)
    assert watched.killed == ["a"]


@pytest.mark.parametrize(("limit", "code"), [("0.2", 1), ("60", 0), ("math.inf", 0)])
def test_an_alarm_ends_its_process_though_native_code_holds_the_interpreter(
    limit: str, code: int
) -> None:
    program = (
        "import ctypes, math\nfrom search.hangs import alarm\n"
        f"with alarm({limit}):\n    ctypes.PyDLL(None).usleep(500_000)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == code
    assert ("line 4" in run.stderr) == (code == 1)  # where it hung
