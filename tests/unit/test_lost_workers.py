"""What ends the last steps of a study is told in one line, with exit code 1."""

import errno
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from optuna.trial import TrialState
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.experiment import Trial

from search import confirmation
from search.confirmation import confirm
from search.lost_workers import _Controller, scored
from search.shared_files import SharedFiles, SharedFilesError
from tests.doubles import FakeTrial, space_file
from tests.study_fixtures import new_study

REFUSAL = "s3://b must let this machine read x, but refused for 300 s: AWS Error"


def raised_in_a_task(error: Exception) -> Exception:
    """What `ray.get` raises for it: of its class too, but a coloured traceback as its text."""
    told = RayTaskError("task", f"\x1b[36mray::task()\x1b[39m\n  File x.py\n{error}", error, ip="")
    dual: Exception = told.as_instanceof_cause()
    assert isinstance(dual, type(error))
    assert "\n" in str(dual)
    return dual


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task meets storage that refuses."""

    def get(tasks: Any) -> None:
        raise raised_in_a_task(SharedFilesError(REFUSAL))

    monkeypatch.setattr(ray, "get", get)


def line_of(ended: SystemExit) -> str:
    """What the process says at its end; a text as its code is an exit code of 1."""
    assert isinstance(ended.code, str)
    assert "\n" not in ended.code
    assert "repeat the command" in ended.code
    return ended.code


@pytest.mark.usefixtures("refused")
def test_storage_that_refuses_a_scoring_ends_the_command_in_a_line() -> None:
    with pytest.raises(SystemExit) as ended:
        scored(["task"], "fan")
    assert line_of(ended.value).startswith(f"fan: the clips could not be scored: {REFUSAL}; ")


def test_a_device_that_fails_a_scoring_ends_the_command_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Raised by hand: no GPU was broken for it."""

    def get(tasks: Any) -> None:
        raise raised_in_a_task(torch.AcceleratorError("CUDA error: launch failure"))

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(SystemExit) as ended:
        scored(["task"], "fan")
    lost = "worker lost: AcceleratorError: CUDA error: launch failure"
    assert line_of(ended.value).startswith(f"fan: the clips could not be scored: {lost}; ")


def test_an_error_of_the_scoring_itself_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(tasks: Any) -> None:
        raise raised_in_a_task(ZeroDivisionError("division by zero"))

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ZeroDivisionError):
        scored(["task"], "fan")


@pytest.mark.usefixtures("refused")
def test_storage_that_refuses_a_fresh_seed_ends_the_command_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task:
        def remote(self, *args: Any, **options: Any) -> str:
            return "task"

    monkeypatch.setattr(confirmation.ray, "remote", lambda **options: lambda task: Task())
    monkeypatch.setattr(confirmation.ray, "wait", lambda tasks, num_returns: (tasks, []))
    study = new_study()
    trial = study.ask()
    assert trial is not None
    study.finish(trial.number, TrialState.COMPLETE, value=0.9)
    with pytest.raises(SystemExit) as ended:
        confirm(
            {"fan": study},
            space_file(),
            folder=tmp_path / "s",
            packs={"fan": "pack"},
            resources={"cpu": 1.0, "gpu": 0.0},
            files=SharedFiles(tmp_path),
        )
    said = line_of(ended.value)
    assert said.startswith(f"fan: trial {trial.number} could not be confirmed: {REFUSAL}; ")
    assert study.noted(f"confirmation/{trial.number}/0") is None  # no failure of the finalist


def test_a_loss_for_which_there_is_no_room_ends_the_command_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not as an error of Tune's, which nobody expects."""

    def write(trial: Trial, error: Exception) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/ray/error.pkl")

    monkeypatch.setattr(FakeTrial, "handle_error", write)
    controller = object.__new__(_Controller)
    with pytest.raises(SystemExit) as ended:
        controller._process_trial_failure(FakeTrial("double", stub=True), RayActorError())
    assert "No space left on device: '/tmp/ray/error.pkl'; mend it" in line_of(ended.value)
