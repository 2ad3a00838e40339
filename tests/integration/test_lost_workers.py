"""Workers that score clips at a study's end, and die."""

import os
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from optuna.trial import TrialState

from search import conclude, finalists
from search.config import PromotionConfig
from search.confirmation import Winner
from search.failures import WORKER_RETRIES
from search.lost_workers import StepLost, scored
from search.shared_files import SharedFiles, SharedFilesError
from search.studies import TypeStudy
from tests.doubles import space_file
from tests.model_fixtures import tone_pack
from tests.study_fixtures import new_study

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

RESOURCES = {"cpu": 1.0, "gpu": 0.0}


def die() -> None:
    os._exit(1)


def fail() -> None:
    raise ValueError("no clips")


def be_refused() -> None:
    raise SharedFilesError("s3://b refuses")


def test_clips_that_no_worker_survives_end_the_command_in_a_line() -> None:
    task = ray.remote(max_retries=1)(die).remote()
    with pytest.raises(StepLost) as ended:
        scored([task], "fan")
    assert str(ended.value).startswith("fan: the clips could not be scored: worker lost: ")
    assert str(ended.value).endswith("trials and winner are recorded, and no outcome is yet")
    assert "\n" not in str(ended.value)


def test_storage_that_refuses_a_task_ends_the_command_in_a_line() -> None:
    with pytest.raises(StepLost) as ended:
        scored([ray.remote(be_refused).remote()], "fan")
    assert str(ended.value).startswith("fan: the clips could not be scored: s3://b refuses; repeat")


def test_an_error_of_the_task_itself_is_raised_as_it_is() -> None:
    with pytest.raises(ValueError, match="no clips"):
        scored(ray.remote(fail).remote(), "fan")


@pytest.fixture
def tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line for each time that the device of one who scores broke: raised by hand, on no GPU."""
    told = tmp_path / "tries"

    def broken(*args: Any) -> None:
        with told.open("a") as file:
            file.write("tried\n")
        raise torch.AcceleratorError("CUDA error: launch failure")

    monkeypatch.setattr(conclude, "_evaluate", broken)
    monkeypatch.setattr(finalists, "_nll", broken)
    return told


@pytest.fixture
def study() -> TypeStudy:
    """One complete trial, confirmed by one fresh seed."""
    study = new_study()
    trial = study.ask()
    assert trial is not None
    study.finish(trial.number, TrialState.COMPLETE, value=0.9)
    study.note(f"confirmation/{trial.number}/0", {"objective": 0.9})
    return study


def test_a_device_that_breaks_over_the_winner_is_tried_again_in_other_processes(
    tries: Path, study: TypeStudy, tmp_path: Path
) -> None:
    nobody: Any = None
    with pytest.raises(StepLost, match="AcceleratorError: CUDA error: launch failure; repeat"):
        conclude.conclude(
            study,
            tone_pack(),
            Winner(members=(0,), checkpoints=("unread",), objectives=()),
            folder=tmp_path / "s",
            resources=RESOURCES,
            files=SharedFiles(tmp_path),
            shared_pack="unread",
            tracker=nobody,
            registry=nobody,
            tags={},
            mode="never",
            promotion=PromotionConfig(),
        )
    assert len(tries.read_text().split()) == 1 + WORKER_RETRIES


def test_a_device_that_breaks_over_finalists_is_tried_again_in_other_processes(
    tries: Path, study: TypeStudy, tmp_path: Path
) -> None:
    confirmation = space_file().confirmation.model_copy(update={"top": 1, "seeds": 1})
    space = space_file().model_copy(update={"confirmation": confirmation})
    folder, files = tmp_path / "s", SharedFiles(tmp_path)
    with pytest.raises(StepLost, match="AcceleratorError: CUDA error: launch failure; repeat"):
        finalists.score_finalists(study, tone_pack(), space, folder, RESOURCES, files, "unread")
    assert len(tries.read_text().split()) == 1 + WORKER_RETRIES
