"""What `search/failures.py` says, done to trials on a real Ray."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.failures import WORKER_RETRIES
from search.launch import run_trials
from search.storages import open_storage
from tests.doubles import analytic_trainable, events_of, space_file
from tests.invariant import check_trials
from tests.study_fixtures import new_study

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

EPOCHS = 3
Story = tuple[Path, list[FrozenTrial]]
RESOURCES = {"cpu": 1.0, "gpu": 0.0}


def run(
    folder: Path, plan: Mapping[tuple[str, int], str], n_trials: int = 4, **sections: Any
) -> list[FrozenTrial]:
    """A study of analytic trials of which some misbehave, to its end."""
    space = space_file(trials=n_trials, epochs=EPOCHS, scheduler={"name": "none"}, **sections)
    with open_storage(folder) as storage:
        fan = new_study(storage, space=space)
        run_trials(
            {"fan": fan},
            space,
            folder=folder,
            packs={"fan": Path("no pack")},
            resources=RESOURCES,
            trainable=analytic_trainable(plan),
        )
        trials = list(fan.trials())
    check_trials({"fan": trials}, asked=n_trials)
    return trials


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Story:
    folder = tmp_path_factory.mktemp("hung")
    plan = {("fan", 0): "hang always", ("fan", 1): "hang once", ("fan", 2): "freeze once"}
    return folder, run(folder, plan, study={"hang_minutes": 6 / 60})


def test_a_trial_that_hangs_is_given_up_and_the_others_finish(
    hung: Story,
) -> None:
    folder, trials = hung
    states = [trial.state for trial in trials]
    assert states == [TrialState.FAIL, *3 * [TrialState.COMPLETE]]
    assert trials[0].user_attrs["reason"] == "hung: no report for 6 s"
    assert trials[0].user_attrs["attempts"] == 1 + WORKER_RETRIES
    assert trials[0].intermediate_values.keys() == {1}
    own = Counter(e["epoch"] for e in events_of(folder) if e["number"] == 0)
    assert own == {1: 1, 2: 1 + WORKER_RETRIES}


@pytest.mark.parametrize("number", [1, 2], ids=["in native code", "stopped"])
def test_a_trial_that_hung_once_goes_on_from_its_checkpoint(hung: Story, number: int) -> None:
    folder, trials = hung
    assert trials[number].user_attrs["attempts"] == 2
    own = [e["epoch"] for e in events_of(folder) if e["number"] == number]
    assert own == [1, 2, 2, 3]


def test_no_worker_that_hung_is_left(hung: Story) -> None:
    folder, _ = hung
    pids = {e["pid"] for e in events_of(folder)}
    left = [pid for pid in pids if psutil.pid_exists(pid)]
    assert left == []
