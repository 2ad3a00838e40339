"""Trials that hang, in a whole search: one always, one in native code, one whose process stops."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.failures import WORKER_RETRIES
from tests.invariant import check_invariant, open_journal
from tests.search_folder import Snapshot
from tests.troubled_search import CONFIRMATION, TroubledFolder, space_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

N_TRIALS, HANG_S = 4, 10
SPACE = space_of(N_TRIALS, f", hang_minutes: {HANG_S / 60}")


@dataclass(frozen=True)
class Story:
    folder: TroubledFolder
    done: Snapshot

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.done.trials["fan"]


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, ray_cluster: str) -> Story:
    folder = TroubledFolder(
        tmp_path_factory.mktemp("hung"),
        empty_store,
        SPACE,
        ["fan"],
    )
    folder.follow({0: "hang always", 1: "hang once", 2: "freeze once"})
    return Story(folder, folder.run("--address", ray_cluster))


def test_nothing_is_lost(hung: Story) -> None:
    assert hung.done.exit_code == 0, hung.done.stderr
    storage = open_journal(hung.folder.out, "s")
    check_invariant(hung.done.summary, storage, asked=N_TRIALS)
    assert hung.done.summary["machine_types"]["fan"]["promoted"]
    states = [trial.state for trial in hung.trials]
    assert states == [TrialState.FAIL, *3 * [TrialState.COMPLETE]]


def test_a_trial_that_always_hangs_is_given_up(hung: Story) -> None:
    trial = hung.trials[0]
    assert trial.user_attrs["reason"] == f"hung: no report for {HANG_S} s"
    assert trial.user_attrs["attempts"] == 1 + WORKER_RETRIES
    assert trial.intermediate_values.keys() == {1}
    assert hung.folder.epochs(0) == [1, *(1 + WORKER_RETRIES) * [2]]


@pytest.mark.parametrize("number", [1, 2], ids=["in native code", "stopped"])
def test_a_trial_that_hung_once_goes_on_from_its_checkpoint(hung: Story, number: int) -> None:
    assert hung.trials[number].user_attrs["attempts"] == 2
    assert hung.folder.epochs(number) == [1, 2, 2, 3]


def test_no_worker_that_hung_is_left(hung: Story) -> None:
    pids = {note["pid"] for note in hung.folder.notes() if note["who"] != CONFIRMATION}
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
