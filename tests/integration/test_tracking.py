"""Trials in a real MLflow store, SQLite and a server on loopback: idempotent, cheap, patient."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from mimimi_core.config import FrontendConfig, NetworkConfig, TrialConfig
from mimimi_core.detector import Detector
from mimimi_core.network import build_network
from mimimi_core.scoring import Threshold
from search import tracking
from search.background import BackgroundTracker
from search.registry import Registry
from search.tracking import Tracker, TrackingError, check

pytestmark = [
    pytest.mark.integration,
    # MLflow 3.17 on SQLAlchemy 2.1: MLflow's own models use a deprecated loader strategy.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
EPOCH_MS = int(START.timestamp() * 1000)


def make_trial(number: int, state: TrialState, epochs: int, **user_attrs: Any) -> FrozenTrial:
    """A trial as Optuna's storage gives it: params, `fixed` and one user attribute per epoch."""
    reports = {
        f"epoch/{epoch}": {
            "timestamp_ms": EPOCH_MS + 1000 * epoch,
            "train_loss": 1.0 / epoch,
            "val_auc": 0.5 + 0.01 * epoch,
            "val_auc/id_00": 0.6,
        }
        for epoch in range(1, epochs + 1)
    }
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=0.75 if state == TrialState.COMPLETE else None,
        datetime_start=START + timedelta(minutes=number),
        datetime_complete=START + timedelta(hours=1) if state.is_finished() else None,
        params={"network.channels": 8, "train.lr": 1e-3},
        distributions={
            "network.channels": IntDistribution(1, 64),
            "train.lr": FloatDistribution(1e-5, 1e-1),
        },
        user_attrs={"fixed": {"train.epochs": 30}, **reports, **user_attrs},
        system_attrs={},
        intermediate_values={},
    )


class WatchedClient(MlflowClient):
    """Counts the requests, and fails them: before they are carried out, or after."""

    calls: Counter[str] = Counter()
    fails: str | None = None  # "before", "after" or None

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name.startswith("_") or not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            WatchedClient.calls[name] += 1
            if WatchedClient.fails == "before":
                raise MlflowException("connection refused")
            result = attribute(*args, **kwargs)
            if WatchedClient.fails == "after":
                raise MlflowException("reply lost")
            return result

        return call


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[WatchedClient]:
    monkeypatch.setattr(tracking, "MlflowClient", WatchedClient)
    monkeypatch.setattr(WatchedClient, "calls", Counter())
    monkeypatch.setattr(WatchedClient, "fails", None)
    return WatchedClient


@pytest.fixture
def sqlite_uri(empty_store: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


class Server:
    """`mlflow server` on a free port of the loopback interface."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self._folder = folder
        shutil.copy(empty_store, folder / "server.db")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # 8 processes
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=environment,
                start_new_session=True,
            )
        wait_until(self._is_healthy, timeout_s=90)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            return False


def wait_until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), empty_store)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_uri"))
    return str(request.getfixturevalue("server").uri)


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    return request.node.name  # the server is shared, so each test has its own experiment


def runs_of(tracker: Tracker, uri: str) -> dict[str, Any]:
    """All runs of the experiment by name; a duplicate fails."""
    runs = MlflowClient(uri).search_runs([tracker.experiment_id], max_results=1000)
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def points(uri: str, run_id: str, metric: str) -> list[tuple[int, float, int]]:
    history = MlflowClient(uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value, point.timestamp) for point in history)


def test_a_trial_grows_into_one_child_run(uri: str, study: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, tmp_path / "artifacts", study, {"git_commit": "abc"})
    for epochs in range(4):
        tracker.log_trial("fan", make_trial(7, TrialState.RUNNING, epochs))
    assert runs_of(tracker, uri)["fan/7"].info.status == "RUNNING"
    tracker.log_trial("fan", make_trial(7, TrialState.COMPLETE, 5, attempts=2))
    tracker.finish("fan")

    runs = runs_of(tracker, uri)
    child, parent = runs["fan/7"], runs["fan"]
    assert child.data.params == {
        "network.channels": "8",
        "train.lr": "0.001",
        "train.epochs": "30",
    }
    assert points(uri, child.info.run_id, "val_auc") == [
        (n, 0.5 + 0.01 * n, EPOCH_MS + 1000 * n) for n in range(1, 6)
    ]
    assert child.data.metrics["objective"] == 0.75
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["state"] == "complete"
    assert child.data.tags["attempts"] == "2"
    assert child.info.status == parent.info.status == "FINISHED"
    assert child.info.end_time == EPOCH_MS + 3600 * 1000
    assert parent.data.tags["git_commit"] == "abc"
    experiment = MlflowClient(uri).get_experiment(tracker.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


@pytest.mark.parametrize(
    ("state", "tag", "status"),
    [(TrialState.PRUNED, "pruned", "KILLED"), (TrialState.FAIL, "failed", "FAILED")],
)
def test_unfinished_states_are_told_with_their_reason(
    sqlite_uri: str, tmp_path: Path, state: TrialState, tag: str, status: str
) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    tracker.log_trial("fan", make_trial(0, state, 2, reason="why"))
    run = runs_of(tracker, sqlite_uri)["fan/0"]
    assert (run.data.tags["state"], run.data.tags["reason"]) == (tag, "why")
    assert run.info.status == status
    assert "objective" not in run.data.metrics


def test_a_replay_after_reopening_adds_nothing_but_what_is_new(
    uri: str, study: str, tmp_path: Path, watched: type[WatchedClient]
) -> None:
    first = Tracker(uri, tmp_path, study)
    trials = [make_trial(n, TrialState.COMPLETE, 3) for n in range(3)]
    for trial in [*trials, make_trial(3, TrialState.RUNNING, 2)]:
        first.log_trial("fan", trial)
    before = {name: run.to_dictionary() for name, run in runs_of(first, uri).items()}

    second = Tracker(uri, tmp_path, study)
    watched.calls.clear()
    for trial in [*trials, make_trial(3, TrialState.RUNNING, 2)]:
        second.log_trial("fan", trial)
    assert not watched.calls
    assert {name: run.to_dictionary() for name, run in runs_of(second, uri).items()} == before

    second.log_trial("fan", make_trial(3, TrialState.COMPLETE, 4))
    run_id = second.trial_run("fan", 3)
    assert run_id == first.trial_run("fan", 3)
    assert [step for step, *_ in points(uri, str(run_id), "train_loss")] == [1, 2, 3, 4]


def test_calls_to_the_store_are_few(
    sqlite_uri: str, tmp_path: Path, watched: type[WatchedClient]
) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    tracker.parent_run("fan")

    def calls(state: TrialState, epochs: int) -> dict[str, int]:
        watched.calls.clear()
        tracker.log_trial("fan", make_trial(0, state, epochs))
        return dict(watched.calls)

    assert calls(TrialState.RUNNING, 0) == {"create_run": 1, "log_batch": 1}
    assert calls(TrialState.RUNNING, 1) == {"log_batch": 1}
    assert calls(TrialState.RUNNING, 1) == {}
    assert calls(TrialState.COMPLETE, 2) == {"log_batch": 1, "set_terminated": 1}
    assert calls(TrialState.COMPLETE, 2) == {}


def test_a_long_trial_is_written_in_pieces(sqlite_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    tracker.log_trial("fan", make_trial(0, TrialState.COMPLETE, 700))
    run_id = str(tracker.trial_run("fan", 0))
    assert [step for step, *_ in points(sqlite_uri, run_id, "val_auc")] == list(range(1, 701))


@pytest.mark.parametrize("fails", ["before", "after"])
@pytest.mark.parametrize("request_name", ["create_run", "log_batch", "set_terminated"])
def test_a_failed_request_leaves_no_duplicate(
    sqlite_uri: str,
    tmp_path: Path,
    watched: type[WatchedClient],
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
    request_name: str,
) -> None:
    """Whichever request fails, carried out or not, doing it all again makes it right."""
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    trial = make_trial(0, TrialState.COMPLETE, 3)
    original = getattr(tracker._client, request_name)

    def fail_once(*args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        if fails == "after":
            original(*args, **kwargs)
        raise MlflowException("unreachable")

    monkeypatch.setattr(tracker._client, request_name, fail_once)
    with pytest.raises(TrackingError, match=r"mlflow\.db: unreachable"):
        tracker.log_trial("fan", trial)
    tracker.log_trial("fan", trial)

    runs = runs_of(tracker, sqlite_uri)
    assert sorted(runs) == ["fan", "fan/0"]
    assert runs["fan/0"].info.status == "FINISHED"
    assert len(points(sqlite_uri, runs["fan/0"].info.run_id, "val_auc")) == 3


def test_a_run_created_behind_our_back_is_removed_on_opening(
    sqlite_uri: str, tmp_path: Path
) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    tracker.log_trial("fan", make_trial(0, TrialState.COMPLETE, 1))
    kept = tracker.trial_run("fan", 0)
    tags = {"trial": "fan/0", "machine_type": "fan"}
    MlflowClient(sqlite_uri).create_run(tracker.experiment_id, tags=tags, run_name="fan/0")
    again = Tracker(sqlite_uri, tmp_path, "study")
    assert runs_of(again, sqlite_uri)["fan/0"].info.run_id == kept == again.trial_run("fan", 0)


def test_a_run_deleted_by_a_person_is_made_again(sqlite_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    tracker.log_trial("fan", make_trial(0, TrialState.RUNNING, 1))
    MlflowClient(sqlite_uri).delete_run(tracker.trial_run("fan", 0))
    with pytest.raises(TrackingError, match="'active' state"):
        tracker.log_trial("fan", make_trial(0, TrialState.RUNNING, 2))
    tracker.log_trial("fan", make_trial(0, TrialState.RUNNING, 2))
    assert len(points(sqlite_uri, str(tracker.trial_run("fan", 0)), "val_auc")) == 2


def test_more_than_a_page_of_runs_is_read(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_RUNS_PER_PAGE", 3)
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    for number in range(7):
        tracker.log_trial("fan", make_trial(number, TrialState.COMPLETE, 1))
    again = Tracker(sqlite_uri, tmp_path, "study")
    assert None not in [again.trial_run("fan", number) for number in range(7)]


def test_parent_metrics_are_written_when_they_change(sqlite_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    for step, best in enumerate([0.6, 0.6, 0.7], start=1):
        tracker.log_parent("fan", {"best_val_auc": best, "test_auc": None}, {"k": "v"}, step)
    Tracker(sqlite_uri, tmp_path, "study").log_parent("fan", {"best_val_auc": 0.7}, step=4)
    run_id = tracker.parent_run("fan")
    assert [p[:2] for p in points(sqlite_uri, run_id, "best_val_auc")] == [(1, 0.6), (3, 0.7)]
    parent = runs_of(tracker, sqlite_uri)["fan"]
    assert "test_auc" not in parent.data.metrics
    assert parent.data.tags["k"] == "v"


def test_figures_and_files_become_artifacts(uri: str, study: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, tmp_path / "artifacts", study)
    run_id = tracker.parent_run("fan")
    figure = Figure()
    figure.subplots()
    tracker.log_figures(run_id, {"roc": figure})
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.md").write_text("# Fan\n")
    tracker.log_files(run_id, tmp_path / "report")
    client = MlflowClient(uri)
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/roc.png"]
    assert "summary.md" in [file.path for file in client.list_artifacts(run_id)]
    if uri.startswith("sqlite"):
        assert list((tmp_path / "artifacts" / study).rglob("roc.png"))


def test_links_lead_to_experiment_comparison_and_models(sqlite_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    tracker.log_trial("fan", make_trial(0, TrialState.COMPLETE, 1))
    lines = tracker.links({"fan": ["a", "b"]}, ["mimimi-fan"])
    assert lines[0] == f"mlflow ui --backend-store-uri {sqlite_uri}"
    assert f"/#/experiments/{tracker.experiment_id}/runs?viewStateShareKey=trials" in lines[1]
    assert (
        "/#/compare-runs?runs=%5B%22a%22,%22b%22%5D"
        f"&experiments=%5B%22{tracker.experiment_id}%22%5D"
    ) in lines[2]
    assert lines[3].endswith("/#/models/mimimi-fan")

    experiment = MlflowClient(sqlite_uri).get_experiment(tracker.experiment_id)
    columns = json.loads(experiment.tags["mlflow.sharedViewState.trials"])["selectedColumns"]
    assert "metrics.`val_auc`" in columns
    assert columns[-2:] == ["params.`network.channels`", "params.`train.lr`"]


# -- check ------------------------------------------------------------------------------------


def test_check_creates_a_store_without_a_word(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    code = f"from search.tracking import check, Tracker; check({uri!r}); Tracker({uri!r}, '.', 's')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "new" / "mlflow.db").exists()


@pytest.mark.parametrize("bad", ["./mlruns", "mlruns", "file:///x/mlruns", "mysql://h/db", ""])
def test_check_explains_which_uris_there_are(bad: str) -> None:
    with pytest.raises(TrackingError, match="must start with sqlite:///.*no longer writes plain"):
        check(bad)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_check_refuses_a_dead_server_within_seconds(scheme: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        port = closed.getsockname()[1]
        uri = f"{scheme}://user:secret@127.0.0.1:{port}"
        begin = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            check(uri)
    assert time.monotonic() - begin < 5
    message = str(caught.value)
    assert f"127.0.0.1:{port}" in message
    assert "secret" not in message
    assert "\n" not in message
    assert "--tracking-uri" in message


def test_check_refuses_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_CHECK_TIMEOUT_S", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match="timed out"):
            check(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_check_refuses_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, but long enough to look at" * 40)
    with pytest.raises(TrackingError, match="file is not a database"):
        check(f"sqlite:///{tmp_path / 'notes.db'}")
    with pytest.raises(TrackingError, match="cannot use tracking URI"):
        check(f"sqlite:///{tmp_path / 'notes.db' / 'mlflow.db'}")


def test_check_leaves_the_environment_as_it_was(sqlite_uri: str) -> None:
    before = dict(os.environ)
    check(sqlite_uri)
    assert dict(os.environ) == before


def test_a_deleted_experiment_is_refused(sqlite_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    MlflowClient(sqlite_uri).delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match="'study'.*is deleted; restore it"):
        Tracker(sqlite_uri, tmp_path, "study")


# -- background -------------------------------------------------------------------------------


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

    def log_parent(self, machine_type: str, *_: Any) -> None:
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


# -- registry ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    config = TrialConfig(
        network=NetworkConfig(channels=2, depth=3), frontend=FrontendConfig(n_frames=16)
    )
    Detector(
        config=config,
        machine_type="fan",
        machine_ids=("id_00", "id_02"),
        thresholds={
            "id_00": Threshold(value=0.5, false_alarm_rate=0.1, n_normals=9),
            "id_02": None,
        },
        network=build_network(config.network, 2),
    ).save(folder)
    return folder


def test_registered_detector_is_versioned_promoted_and_fetched(
    uri: str, study: str, tmp_path: Path, detector_folder: Path
) -> None:
    tracker, registry = Tracker(uri, tmp_path / "artifacts", study), Registry(uri)
    run_id = tracker.parent_run("fan")
    assert registry.champion("fan") is None
    with pytest.raises(TrackingError, match="no champion of machine type 'fan'.*search.run"):
        registry.download_champion("fan", tmp_path / "champion")

    tags, metrics = {"study": study, "data_hash": "0123"}, {"test_auc": 0.8, "test_pauc": None}
    assert registry.register("fan", detector_folder, run_id, tags, metrics) == 1
    assert registry.register("fan", detector_folder, run_id, tags, metrics) == 1  # the same
    assert registry.champion("fan") is None
    registry.set_champion("fan", 1)
    version, found = registry.champion("fan")
    assert (version, found["study"], found["data_hash"]) == (1, study, "0123")
    assert runs_of(tracker, uri)["fan"].data.metrics["test_auc"] == 0.8

    folder = registry.download_champion("fan", tmp_path / "champion")
    assert sorted(file.name for file in folder.iterdir()) == [
        "detector.json",
        "weights.safetensors",
    ]
    assert Detector.load(folder).machine_ids == ("id_00", "id_02")

    other = shutil.copytree(detector_folder, tmp_path / "other")
    (other / "detector.json").write_text((other / "detector.json").read_text() + "\n")
    assert registry.register("fan", other, run_id, tags, metrics) == 2
    assert registry.champion("fan")[0] == 1


def test_registered_detector_predicts_with_the_code_it_carries(
    sqlite_uri: str, tmp_path: Path, detector_folder: Path
) -> None:
    tracker, registry = Tracker(sqlite_uri, tmp_path / "artifacts", "study"), Registry(sqlite_uri)
    registry.register("fan", detector_folder, tracker.parent_run("fan"), {}, {})
    registry.set_champion("fan", 1)
    model = tmp_path / "artifacts" / "study" / "models"
    assert not [p for p in model.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]

    waveform = np.random.default_rng(0).integers(-9999, 9999, 32000, dtype=np.int16)
    np.save(tmp_path / "waveform.npy", waveform)
    script = f"""
import json, mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri({sqlite_uri!r})
model = mlflow.pyfunc.load_model("models:/mimimi-fan@champion")
waveform = np.load("waveform.npy") / 32768
frame = pd.DataFrame({{"machine_id": ["id_00", "id_02"], "waveform": [waveform, list(waveform)]}})
import mimimi_core
print(json.dumps([mimimi_core.__file__, model.predict(frame).to_dict("list")]))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    core, rows = json.loads(done.stdout)
    assert "/code/mimimi_core/" in core
    detector = Detector.load(detector_folder)
    for index, machine_id in enumerate(("id_00", "id_02")):
        expected = detector.score([waveform], machine_id)[0]
        assert rows["score"][index] == pytest.approx(expected, abs=1e-6)
    assert rows["threshold"][0] == 0.5
    assert rows["decision"][0] in ("normal", "anomaly")
    assert rows["decision"][1] not in ("normal", "anomaly")  # no threshold, no decision
