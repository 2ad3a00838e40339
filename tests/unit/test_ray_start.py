"""Which Ray a search runs on, and what fits there; the rest of `launch` is tested on a real one.

But for the deletion of checkpoints, which needs none.
"""

import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial
from ray.exceptions import AuthenticationError

from search import launch
from search.config import Resources
from search.shared_files import SharedFiles
from search.studies import StudyError

FEW_CORES, NO_GPU = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0}


def test_without_an_address_a_search_joins_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(launch.ray, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(launch.ray, "shutdown", lambda: None)
    with launch.cluster(None):
        pass
    # None would have Ray join the cluster that `ray start` last left a note of, dead or alive.
    assert asked["address"] == "local"


def test_a_cluster_that_wants_a_token_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise AuthenticationError("Token authentication is enabled\nbut no token was found.")

    monkeypatch.setattr(launch.ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(StudyError) as told, launch.cluster(address):
            pass
    assert str(told.value).startswith(f"no Ray cluster answers at --address {address}: Token ")
    assert "RAY_AUTH_TOKEN" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.fixture
def ray_with_its_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray that ends the process on SIGTERM as the real one does, with 15 and without a word."""
    before = signal.getsignal(signal.SIGTERM)

    def init(**options: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))

    monkeypatch.setattr(launch.ray, "init", init)
    monkeypatch.setattr(launch.ray, "shutdown", lambda: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("ray_with_its_handler")
def test_sigterm_at_any_time_is_as_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), launch.cluster(None):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):  # the report is yet to come
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("ray_with_its_handler")
def test_a_cluster_may_be_joined_from_another_thread() -> None:
    joined = []

    def join() -> None:
        with launch.cluster(None):
            joined.append(True)

    thread = threading.Thread(target=join)
    thread.start()
    thread.join()
    assert joined


@pytest.fixture
def cluster_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the machines of the connected cluster have; one more of them was lost."""

    def connect(*machines_have: dict[str, float]) -> None:
        lost: dict[str, Any] = {"Alive": False, "Resources": {}}
        nodes = [{"Alive": True, "Resources": has} for has in machines_have]
        total = sum((Counter(has) for has in machines_have), Counter())
        monkeypatch.setattr(launch.ray, "nodes", lambda: [*nodes, lost])
        monkeypatch.setattr(launch.ray, "cluster_resources", lambda: dict(total))

    return connect


def test_a_trial_must_fit_into_one_machine(cluster_of: Callable[..., None]) -> None:
    cluster_of(FEW_CORES, FEW_CORES, NO_GPU)
    assert launch.trial_resources(Resources(cpu=4, gpu=1.0)) == {"cpu": 4.0, "gpu": 1.0}
    assert launch.trial_resources(Resources(cpu=16, gpu=0.0)) == {"cpu": 16.0, "gpu": 0.0}
    with pytest.raises(
        StudyError,
        match=r"resources must fit into one machine .* got 8 CPU, 0\.5 GPU, .* have 16 CPU, 0 GPU; "
        r"4 CPU, 1 GPU: lower `resources` in the space file",
    ):
        launch.trial_resources(Resources(cpu=8, gpu=0.5))


@pytest.mark.parametrize(
    ("resources", "n"),
    [
        ({"cpu": 3.0, "gpu": 0.0}, 1 + 1 + 5),
        ({"cpu": 1.0, "gpu": 0.5}, 2 + 2),
        ({"cpu": 0.5, "gpu": 0.2}, 5 + 5),  # 1 // 0.2 is 4
        ({"cpu": 8.0, "gpu": 1.0}, 1),  # of a machine that is yet to come
    ],
)
def test_slots_are_counted_machine_by_machine(
    cluster_of: Callable[..., None], resources: dict[str, float], n: int
) -> None:
    cluster_of({"node:head": 1.0}, FEW_CORES, FEW_CORES, NO_GPU)
    assert launch._slots(resources) == n


@pytest.mark.parametrize(("share", "n"), [(0.6, 4), (0.4, 8), (0.3, 12), (0.25, 16), (2.0, 2)])
def test_no_share_lies_on_two_gpus(cluster_of: Callable[..., None], share: float, n: int) -> None:
    cluster_of({"CPU": 64.0, "GPU": 4.0})
    assert launch._slots({"cpu": 1.0, "gpu": share}) == n


class SlowFiles(SharedFiles):
    """Whose deletions take until they are let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.n_deleted, self.let_go, self.begun = 0, threading.Event(), threading.Event()

    def delete(self, name: str) -> None:
        self.begun.set()
        assert self.let_go.wait(60)
        self.n_deleted += 1


def test_at_the_end_every_pruned_trial_s_state_is_deleted(tmp_path: Path) -> None:
    files = SlowFiles(tmp_path)
    files.let_go.set()
    sweeper = launch._CheckpointSweeper(files, tmp_path / "s")
    with sweeper.sweeping():
        for _ in range(8):
            sweeper.on_trial("fan", create_trial(state=TrialState.PRUNED))
    assert files.n_deleted == 8


def test_who_stops_at_once_waits_for_no_deletion(tmp_path: Path) -> None:
    files = SlowFiles(tmp_path)
    sweeper = launch._CheckpointSweeper(files, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt), sweeper.sweeping():  # noqa: PT012
        for _ in range(8):
            sweeper.on_trial("fan", create_trial(state=TrialState.PRUNED))
        assert files.begun.wait(60)
        raise KeyboardInterrupt
    assert files.n_deleted == 0
    files.let_go.set()
    sweeper._thread.shutdown()
    assert files.n_deleted == 1  # which had begun
