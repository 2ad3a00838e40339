"""Trials in a real MLflow store, SQLite and a server on loopback: idempotent, cheap, patient."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState

from search import tracking
from search.tracking import Tracker, TrackingError, check
from tests.tracking_fixtures import (
    EPOCH_MS,
    WatchedClient,
    make_trial,
    points,
    runs_of,
)

pytestmark = pytest.mark.integration


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


def test_runs_of_a_study_that_had_the_name_are_left_alone(sqlite_uri: str, tmp_path: Path) -> None:
    gone = Tracker(sqlite_uri, tmp_path, "study", uids={"fan": "old"})
    for number in range(2):
        gone.log_trial("fan", make_trial(number, TrialState.COMPLETE, 3))
    gone.finish("fan")

    def taken() -> dict[str, Any]:
        runs = [MlflowClient(sqlite_uri).get_run(run_id) for run_id in ids]
        return {run.info.run_id: run.to_dictionary() for run in runs}

    ids = [gone.parent_run("fan"), *(str(gone.trial_run("fan", number)) for number in range(2))]
    before = taken()
    for _ in range(2):  # and when it is opened again
        tracker = Tracker(sqlite_uri, tmp_path, "study", uids={"fan": "new"})
        tracker.log_trial("fan", make_trial(0, TrialState.COMPLETE, 2))
        tracker.finish("fan")
        assert tracker.trial_run("fan", 0) not in ids
        assert tracker.trial_run("fan", 1) is None
        assert tracker.parent_run("fan") not in ids
    assert taken() == before
    assert len(MlflowClient(sqlite_uri).search_runs([tracker.experiment_id])) == 5


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


def test_figures_of_any_machine_id_are_written(sqlite_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    figures = {"val_auc/id_3(left)": 0.5, "val_auc/id_3[left]": 0.6, "val_auc/id_3.5 à": 0.7}
    stamps = {"timestamp_ms": EPOCH_MS, "cpu": 1.0, "gpu": 0.25}  # no figures
    trial = make_trial(0, TrialState.RUNNING, 0, **{"epoch/1": figures | stamps})
    tracker.log_trial("fan", trial)
    metrics = runs_of(tracker, sqlite_uri)["fan/0"].data.metrics
    assert metrics.pop("val_auc/id_3.5 à") == 0.7  # as it is, where MLflow takes it
    assert sorted(metrics.values()) == [0.5, 0.6]
    assert all(name.startswith("val_auc/id_3-left--") for name in metrics)


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


def test_files_become_artifacts(uri: str, study: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, tmp_path / "artifacts", study)
    run_id = tracker.parent_run("fan")
    (tmp_path / "fan").mkdir()
    (tmp_path / "fan" / "summary.md").write_text("# Fan\n")
    tracker.log_files(run_id, tmp_path / "fan", "report")
    client = MlflowClient(uri)
    assert [f.path for f in client.list_artifacts(run_id, "report")] == ["report/summary.md"]
    if uri.startswith("sqlite"):
        assert list((tmp_path / "artifacts" / study).rglob("summary.md"))


def test_links_lead_to_experiment_comparison_and_models(sqlite_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(sqlite_uri, tmp_path, "study")
    tracker.log_trial("fan", make_trial(0, TrialState.COMPLETE, 1))
    lines = tracker.links({"fan": ["a", "b"]}, ["mimimi-fan", "mimimi-50 % #1"])
    assert lines[0] == f"mlflow ui --backend-store-uri {sqlite_uri}"
    assert f"/#/experiments/{tracker.experiment_id}/runs?viewStateShareKey=trials" in lines[1]
    assert (
        "/#/compare-runs?runs=%5B%22a%22,%22b%22%5D"
        f"&experiments=%5B%22{tracker.experiment_id}%22%5D"
    ) in lines[2]
    assert lines[3].endswith("/#/models/mimimi-fan")
    assert lines[4].endswith("/#/models/mimimi-50%20%25%20%231")

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


@pytest.mark.parametrize("bad", ["http://localhost:abc", "postgresql://host:abc/db", "sqlite://x"])
def test_check_refuses_a_uri_that_cannot_be_read(bad: str) -> None:
    with pytest.raises(TrackingError) as caught:
        check(bad)
    assert bad in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_check_refuses_a_dead_server_within_seconds(scheme: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        port = closed.getsockname()[1]
        uri = f"{scheme}://user@127.0.0.1:{port}"
        begin = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            check(uri)
    assert time.monotonic() - begin < 5
    message = str(caught.value)
    assert f"127.0.0.1:{port}" in message
    assert "\n" not in message
    assert "--tracking-uri" in message


@pytest.mark.parametrize("scheme", ["https", "postgresql", "mysql"])
def test_check_refuses_a_password_without_repeating_it(scheme: str) -> None:
    with pytest.raises(TrackingError, match="--tracking-uri must hold no password") as caught:
        check(f"{scheme}://user:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


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
