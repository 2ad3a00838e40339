"""Workers that score clips at a study's end, and die."""

import os

import pytest
import ray

from search.lost_workers import StepLost, scored
from search.shared_files import SharedFilesError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


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
