"""One search, killed, repeated, interrupted, extended: nothing is lost and nothing done twice."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from tests.invariant import check_invariant, check_runs, check_trials, open_journal
from tests.search_folder import Folder, Snapshot
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TYPES = ("fan", "valve")
SPACE = """
study: {trials: 4, epochs: 8}
scheduler: {name: asha, grace_epochs: 1, reduction_factor: 2}
confirmation: {top: 0}
resources: {cpu: 2}  # one worker at a time, because each takes seconds to import torch
"""


@dataclass(frozen=True)
class Story:
    killed: Mapping[str, list[FrozenTrial]]
    repeated: Snapshot
    interrupted: Snapshot
    extended: Snapshot
    again: Snapshot
    storage: BaseStorage


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, ray_cluster: str
) -> Iterator[Story]:
    """The commands that are disturbed start a Ray of their own; the others join one."""
    folder = Folder(tmp_path_factory.mktemp("story"), empty_store, SPACE, TYPES)
    join = ("--address", ray_cluster)
    try:
        with folder.running() as driver:
            folder.wait_for_ended(driver, 3)
            driver.kill()
        wait_until(lambda: not folder.has_workers())  # nobody has to clean up behind it
        killed = folder.trials()
        repeated = folder.run(*join)

        def press_ctrl_c(driver: subprocess.Popen[str]) -> None:
            folder.wait_for_ended(driver, len(repeated.ended()) + 1)
            driver.send_signal(signal.SIGTERM)  # as Ctrl-C: test_launch.py has that

        interrupted = folder.run("--trials", "8", meanwhile=press_ctrl_c)
        extended = folder.run("--trials", "8", *join)
        again = folder.run("--trials", "8", *join)
        wait_until(lambda: not folder.has_workers())
        storage = open_journal(folder.out, "s")
        yield Story(killed, repeated, interrupted, extended, again, storage)
    finally:
        for process in folder.processes():
            os.kill(process, signal.SIGKILL)


def test_the_kill_came_half_way(story: Story) -> None:
    ended = [t for trials in story.killed.values() for t in trials if t.state.is_finished()]
    assert 3 <= len(ended) < 8


def test_repeating_finishes_exactly_the_asked_trials(story: Story) -> None:
    assert story.repeated.exit_code == 0, story.repeated.stderr
    for trials in story.repeated.trials.values():
        assert [trial.number for trial in trials] == list(range(4))
        assert all(trial.state.is_finished() for trial in trials)


def test_what_had_ended_is_as_it_was(story: Story) -> None:
    versions = [story.killed, *(s.trials for s in (story.repeated, story.interrupted))]
    versions += [story.extended.trials, story.again.trials]
    for earlier, later in zip(versions, versions[1:], strict=False):
        for name, trials in earlier.items():
            for trial in trials:
                if trial.state.is_finished():
                    assert later[name][trial.number] == trial
                else:
                    assert later[name][trial.number].params.items() >= trial.params.items()


def test_every_epoch_is_recorded_once(story: Story) -> None:
    for name, trial in story.extended.ended():
        epochs = list(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1)), (name, trial.number)
        if trial.state == TrialState.COMPLETE:
            assert len(epochs) == 8
            assert trial.value == trial.intermediate_values[8]


def test_ctrl_c_ends_in_good_order(story: Story) -> None:
    interrupted = story.interrupted
    assert interrupted.exit_code == 1
    assert "press Ctrl-C again to stop at once" in interrupted.stderr
    assert "trials are unfinished: repeat the command to continue" in interrupted.stderr
    assert 8 < len(interrupted.ended()) < 16
    parents = {r.info.run_name: r for r in interrupted.runs if r.info.run_name in TYPES}
    for name, outcome in interrupted.summary["machine_types"].items():
        ended = Counter(trial.state for trial in interrupted.trials[name])
        assert outcome["complete"] == ended[TrialState.COMPLETE]
        assert parents[name].info.status == "KILLED"


def test_a_larger_number_adds_only_the_difference(story: Story) -> None:
    assert story.extended.exit_code == 0, story.extended.stderr
    for trials in story.extended.trials.values():
        assert [trial.number for trial in trials] == list(range(8))
        assert all(trial.state.is_finished() for trial in trials)


def test_the_same_command_again_changes_nothing(story: Story) -> None:
    assert story.again.exit_code == 0
    assert story.again.trials == story.extended.trials
    for before, after in zip(by_name(story.extended), by_name(story.again), strict=True):
        assert before.info.run_id == after.info.run_id
        assert before.data.metrics == after.data.metrics
        assert before.data.params == after.data.params
        assert before.data.tags == after.data.tags
    findings = [s.summary["machine_types"] for s in (story.extended, story.again)]
    for name in TYPES:
        for key in ("best_val_auc", "test_auc", "test_auc_ci", "champion_version", "trials"):
            assert findings[0][name][key] == findings[1][name][key]


def test_summary_storage_and_mlflow_agree(story: Story) -> None:
    check_trials(story.repeated.trials, asked=4, earlier=story.killed)
    check_runs(story.repeated.trials, story.repeated.runs)
    check_trials(story.extended.trials, asked=8, earlier=story.interrupted.trials)
    check_runs(story.extended.trials, story.extended.runs)
    check_invariant(story.again.summary, story.storage, asked=8, earlier=story.killed)


def test_mlflow_tells_the_parameters_of_each_trial(story: Story) -> None:
    runs = {run.info.run_name: run for run in story.again.runs}
    for name, trial in story.again.ended():
        params = {**trial.user_attrs["fixed"], **trial.params}
        run = runs[f"{name}/{trial.number}"]
        assert run.data.params == {key: str(value) for key, value in params.items()}
    for name in TYPES:
        assert runs[name].info.status == "FINISHED"


def test_nobody_is_alarmed(story: Story) -> None:
    for snapshot in (story.repeated, story.interrupted, story.extended, story.again):
        assert len(snapshot.stdout.splitlines()) == 1
        for noise in ("Traceback", "Warning", "[I ", "ERROR"):
            assert noise not in snapshot.stderr


def by_name(snapshot: Snapshot) -> list[Run]:
    return sorted(snapshot.runs, key=lambda run: str(run.info.run_name))
