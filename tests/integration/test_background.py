"""The thread that writes to the tracker: newest first, patient, never in the way."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from search.background import BackgroundTracker
from search.tracking import Tracker, TrackingError
from tests.tracking_fixtures import Server, WatchedClient, make_trial, points, runs_of
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


class Recorder:
    """A tracker that writes into a list, while `gate` is open and unless told to fail."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int, int]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.fails = False
        self.attempts = 0

    def log_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        self.entered.set()
        self.gate.wait(10)
        self.attempts += 1
        if self.fails:
            raise TrackingError("server away")
        epochs = sum(name.startswith("epoch/") for name in trial.user_attrs)
        self.written.append((machine_type, trial.number, epochs))

    def log_parent(self, machine_type: str, *_: Any, **__: Any) -> None:
        self.written.append((machine_type, -1, 0))


def test_background_writes_only_the_newest_snapshot(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    background = BackgroundTracker(recorder)
    background.submit_trial("fan", make_trial(0, TrialState.RUNNING, 0))
    recorder.entered.wait(10)  # the first is being written, everything else waits
    begin = time.monotonic()
    for epochs in range(1, 200):
        for number in range(3):
            background.submit_trial("fan", make_trial(number, TrialState.RUNNING, epochs))
    background.submit_parent("fan", {"best_val_auc": 0.7})
    assert time.monotonic() - begin < 5  # nearly all of it making the trials
    recorder.gate.set()
    assert background.close(10) == 0
    assert recorder.written == [
        ("fan", 0, 0), ("fan", 0, 199), ("fan", 1, 199), ("fan", 2, 199), ("fan", -1, 0)
    ]  # fmt: skip
    assert not caplog.records


def test_background_tries_again_and_complains_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    recorder.gate.set()
    recorder.fails = True
    background = BackgroundTracker(recorder, retry_s=0.001, retry_most_s=0.002)
    for number in range(3):
        background.submit_trial("fan", make_trial(number, TrialState.RUNNING, 1))
    wait_until(lambda: recorder.attempts > 6)
    assert [r.getMessage() for r in caplog.records] == [
        "tracking fails, will be tried again: server away"
    ]
    recorder.fails = False
    assert background.close(10) == 0
    assert sorted(recorder.written) == [("fan", 0, 1), ("fan", 1, 1), ("fan", 2, 1)]


def test_background_close_gives_up_in_time_and_counts_what_is_missing() -> None:
    recorder = Recorder()
    recorder.gate.set()
    recorder.fails = True
    background = BackgroundTracker(recorder)
    for number in range(3):
        background.submit_trial("fan", make_trial(number, TrialState.RUNNING, 1))
    begin = time.monotonic()
    assert background.close(0.2) == 3
    assert time.monotonic() - begin < 2
    with pytest.raises(RuntimeError, match="fan/9 was submitted after close"):
        background.submit_trial("fan", make_trial(9, TrialState.RUNNING, 1))


def test_background_is_not_held_up_by_one_bad_trial() -> None:
    class OneBad(Recorder):
        def log_trial(self, machine_type: str, trial: FrozenTrial) -> None:
            if trial.number == 0:
                raise ValueError("a bug")
            super().log_trial(machine_type, trial)

    recorder = OneBad()
    recorder.gate.set()
    background = BackgroundTracker(recorder, retry_s=0.001)
    for number in range(3):
        background.submit_trial("fan", make_trial(number, TrialState.RUNNING, 1))
    assert background.close(0.5) == 1
    assert recorder.written == [("fan", 1, 1), ("fan", 2, 1)]


def test_a_store_that_comes_back_gets_everything(
    sqlite_uri: str, tmp_path: Path, watched: type[WatchedClient]
) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    background = BackgroundTracker(tracker, retry_s=0.001, retry_most_s=0.01)
    for state, fails in ((TrialState.RUNNING, None), (TrialState.COMPLETE, "after")):
        watched.fails = fails
        for number in range(4):
            background.submit_trial("fan", make_trial(number, state, 3))
        watched.calls.clear()
        wait_until(lambda: sum(watched.calls.values()) > 3)
    watched.fails = None
    assert background.close(20) == 0
    runs = runs_of(tracker, sqlite_uri)
    assert len(runs) == 1 + 4
    for number in range(4):
        run = runs[f"fan/{number}"]
        assert run.info.status == "FINISHED"
        assert len(points(sqlite_uri, run.info.run_id, "val_auc")) == 3


def test_a_killed_server_that_comes_back_gets_everything(
    server: Server, study: str, tmp_path: Path
) -> None:
    tracker = Tracker(server.uri, tmp_path, study)
    background = BackgroundTracker(tracker, retry_s=0.05, retry_most_s=0.2)
    background.submit_trial("fan", make_trial(0, TrialState.RUNNING, 2))
    wait_until(lambda: "fan/0" in runs_of(tracker, server.uri))
    server.stop()
    background.submit_trial("fan", make_trial(0, TrialState.COMPLETE, 4))
    background.submit_trial("fan", make_trial(1, TrialState.PRUNED, 1))
    server.start()
    assert background.close(30) == 0
    runs = runs_of(tracker, server.uri)
    assert sorted(runs) == ["fan", "fan/0", "fan/1"]
    steps = [step for step, *_ in points(server.uri, runs["fan/0"].info.run_id, "val_auc")]
    assert steps == [1, 2, 3, 4]
