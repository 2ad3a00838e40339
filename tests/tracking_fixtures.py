"""Trials to log, a client that fails on demand, an MLflow server that can be killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from search.tracking import Tracker
from tests.waiting import wait_until

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


def runs_of(tracker: Tracker, uri: str) -> dict[str, Any]:
    """All runs of the experiment by name; a duplicate fails."""
    runs = MlflowClient(uri).search_runs([tracker.experiment_id], max_results=1000)
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def points(uri: str, run_id: str, metric: str) -> list[tuple[int, float, int]]:
    history = MlflowClient(uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value, point.timestamp) for point in history)
