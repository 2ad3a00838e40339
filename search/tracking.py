"""Owns MLflow's runs: one experiment per study, a run per trial.

Only this file and `search/registry.py`, which owns the models, import mlflow. What stands here is a
view of Optuna's storage and can be rebuilt from it at any time by logging all trials again, so
every write is an idempotent upsert and nothing is spooled. Calls block and raise;
`search/background.py` keeps them out of the way of the trials.
"""

import getpass
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import time
from typing import Any, Literal

from optuna.trial import FrozenTrial

from search import mlflow_ui
from search.postgres import connect
from search.space import all_params
from search.studies import EPOCH, STAMPS, Ending, ending_of
from search.uris import UriError, require_no_password
from search.views import COST

# Before the import, because importing MLflow starts its usage reports. No retries inside MLflow:
# it would hide an outage for four minutes and may create a run twice; whoever calls us tries again.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from sqlalchemy.engine import make_url  # noqa: E402
from sqlalchemy.exc import ArgumentError, SQLAlchemyError  # noqa: E402

for _name in ("mlflow", "alembic"):  # schema creation alone logs a screenful
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs, it raises

_UID = "study_uid"  # tag of a run
_STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError, ImportError)
_CHECK_TIMEOUT_S = 5
_RUNS_PER_PAGE = 1000
_METRICS_PER_CALL = 800  # MLflow's limit is 1,000 entities, parameters and tags included
_STATUS: dict[Ending, str] = {  # of the MLflow run
    "running": "RUNNING",
    "paused": "RUNNING",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
}


class TrackingError(RuntimeError):
    """The tracking server or database cannot be used; the message says which and what to do."""


def check(tracking_uri: str, create: bool = True) -> None:
    """Refuse within seconds what cannot be used.

    Args:
        tracking_uri: As MLflow spells it.
        create: Make a sqlite store and its schema where there is none.

    Raises:
        TrackingError: The scheme is unknown, the URI cannot be read, or nothing usable answers
            there.
    """
    try:
        require_no_password(tracking_uri, "--tracking-uri")
    except UriError as error:
        raise TrackingError(str(error)) from error
    scheme = tracking_uri.partition("://")[0].partition("+")[0]
    if "://" not in tracking_uri or scheme not in ("sqlite", "postgresql", "http", "https"):
        raise TrackingError(
            f"tracking URI must start with sqlite:///, postgresql://, http:// or https://, got "
            f"{tracking_uri!r} (MLflow no longer writes plain folders such as ./mlruns; "
            "use sqlite:///runs/mlflow.db)"
        )
    try:
        make_url(tracking_uri)
    except (ArgumentError, ValueError) as error:
        raise TrackingError(
            f"tracking URI must be SCHEME://HOST:PORT/..., its port a number, got {tracking_uri!r}"
        ) from error
    try:
        if scheme == "sqlite":
            _touch_sqlite(tracking_uri, create)
        elif scheme == "postgresql":  # MLflow would try again for minutes
            connect(tracking_uri).close()
        with _environment(
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT=str(_CHECK_TIMEOUT_S)
        ):
            open_client(tracking_uri).search_experiments(max_results=1)
    except (*_STORE_ERRORS, sqlite3.Error) as error:
        raise TrackingError(
            f"cannot use tracking URI {tracking_uri}: {_cause(error)}; start the "
            "server, or give another --tracking-uri (sqlite:///runs/mlflow.db needs no server)"
        ) from error


@dataclass
class _KnownRun:
    """What the store holds of one run, as far as we know."""

    run_id: str
    state: str = ""
    status: str = "RUNNING"
    epochs: int = 0
    has_params: bool = False
    metrics: Mapping[str, float] | None = None

    @classmethod
    def from_run(cls, run: Run) -> "_KnownRun":
        return cls(
            run_id=run.info.run_id,
            state=run.data.tags.get("state", ""),
            status=run.info.status,
            epochs=int(run.data.tags.get("epochs", 0)),
            has_params=bool(run.data.params),
            metrics=run.data.metrics,
        )


class Tracker:
    """The MLflow experiment of one study: a parent run per machine type, a child run per trial.

    A run is found by its tag `trial` (`fan/7`), the parent by `machine_type` alone; runs of another
    study that had the name are left alone. All runs are read once on opening, and again after every
    failure, because a request that failed here may have been carried out there.

    Args:
        tracking_uri: As accepted by `check`.
        artifact_root: Folder for figures and models; ignored by servers, which choose their own.
        study_name: Name of the experiment.
        tags: Tags of the experiment and of the parent runs (git commit, data hash, ...).
        uids: Machine type -> `TypeStudy.uid`.
    """

    def __init__(
        self,
        tracking_uri: str,
        artifact_root: Path | str,
        study_name: str,
        tags: Mapping[str, str] | None = None,
        uids: Mapping[str, str] | None = None,
    ) -> None:
        self._uri = tracking_uri
        self._uids = dict(uids or {})
        self._study_name = study_name
        self._tags = dict(tags or {})
        self._client = open_client(tracking_uri)
        self._lock = threading.Lock()
        self._runs: dict[str, _KnownRun] = {}
        self._searched: dict[str, None] = {}  # parameters in the order they were first seen
        self._is_certain = False
        with store_errors(tracking_uri):
            self.experiment_id = self._open_experiment(Path(artifact_root))
        with self._store():
            pass  # reads the runs

    def parent_run(self, machine_type: str) -> str:
        """The id of the machine type's parent run, created when there is none."""
        with self._store():
            return self._parent(machine_type).run_id

    def trial_run(self, machine_type: str, number: int) -> str | None:
        """The id of a trial's run, None if it was never logged."""
        known = self._runs.get(f"{machine_type}/{number}")
        return known.run_id if known else None

    def log_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """Bring the trial's run up to date; costs no call to the store when it already is.

        Reads `trial.params`, `trial.value` and the user attributes `fixed`, `epoch/<n>`, `reason`
        and `attempts`. Points carry the time stamped in the trial, so that a repeated write of a
        point is recognised as the same.
        """
        self._searched.update(dict.fromkeys(trial.params))
        state = ending_of(trial)
        status = _STATUS[state]
        with self._store():
            key = f"{machine_type}/{trial.number}"
            known = self._runs.get(key)
            if known and (known.state, known.status) == (state, status) and status != "RUNNING":
                return
            parent = self._parent(machine_type)
            if parent.status != "RUNNING":
                self._client.update_run(parent.run_id, status="RUNNING")
                parent.status = "RUNNING"
            if known is None:
                tags = {"trial": key, "mlflow.parentRunId": parent.run_id}
                started_ms = _milliseconds(trial.datetime_start)
                known = self._create_run(key, machine_type, tags, started_ms)
            self._write_trial(known, trial, state, status)

    def log_parent(
        self,
        machine_type: str,
        metrics: Mapping[str, float | None],
        tags: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Write those metrics of the parent run that changed, and tags.

        Args:
            machine_type: Whose parent run.
            metrics: Current values; None is left out.
            tags: Tags to set.
            step: Trials ended so far, the x axis of `best_objective`.
        """
        with self._store():
            known = self._parent(machine_type)
            old = known.metrics or {}
            new = {k: float(v) for k, v in metrics.items() if v is not None and old.get(k) != v}
            now = int(time() * 1000)
            self._client.log_batch(
                known.run_id,
                metrics=[Metric(name, value, now, step) for name, value in new.items()],
                tags=_run_tags(tags or {}),
            )
            known.metrics = {**old, **new}

    def finish(
        self, machine_type: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"
    ) -> None:
        """Close the parent run; a later write to one of its trials opens it again."""
        with self._store():
            known = self._parent(machine_type)
            if known.status != status:
                self._client.set_terminated(known.run_id, status)
                known.status = status

    def log_files(self, run_id: str, folder: Path, name: str) -> None:
        """Store a folder's files as artifacts of the run, in a folder of that name."""
        with self._store():
            self._client.log_artifacts(run_id, str(folder), name)

    def links(
        self, best_runs: Mapping[str, Sequence[str]], model_names: Sequence[str] = ()
    ) -> list[str]:
        """Lines that lead a person to the runs, each type's best trials side by side, the models.

        Also leaves a shared view in the experiment, which shows AUCs and searched parameters in
        the table of runs; MLflow's own default shows no metric at all.
        """
        with self._store():
            self._client.set_experiment_tag(
                self.experiment_id,
                f"mlflow.sharedViewState.{mlflow_ui.VIEW}",
                mlflow_ui.view_state(list(self._searched)),
            )
        return mlflow_ui.links(self._uri.rstrip("/"), self.experiment_id, best_runs, model_names)

    def _open_experiment(self, artifact_root: Path) -> str:
        found = self._client.get_experiment_by_name(self._study_name)
        if found is None:
            is_local = not self._uri.startswith("http")
            location = (artifact_root / self._study_name).resolve().as_uri() if is_local else None
            experiment_id = str(self._client.create_experiment(self._study_name, location))
            found = self._client.get_experiment(experiment_id)
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {self._study_name!r} at {self._uri} is deleted; "
                f"restore it (mlflow experiments restore -x {found.experiment_id}) or name another "
                "--study"
            )
        # Without the kind, MLflow's UI opens the experiment in its mode for language models.
        wanted = {"mlflow.experimentKind": "custom_model_development", **self._tags}
        for key, value in wanted.items():
            if found.tags.get(key) != value:
                self._client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    @contextmanager
    def _store(self) -> Iterator[None]:
        """One thread at a time; after a failure the next caller looks before it writes."""
        with self._lock, store_errors(self._uri):
            if not self._is_certain:
                self._read_runs()
            self._is_certain = False
            yield
            self._is_certain = True

    def _read_runs(self) -> None:
        self._runs = {}
        token: str | None = None
        while token != "":
            page = self._client.search_runs(
                [self.experiment_id],
                max_results=_RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                self._adopt(run)
            token = page.token or ""

    def _adopt(self, run: Run) -> None:
        machine_type = run.data.tags.get("machine_type")
        if machine_type is None:  # a person's own run
            return
        if run.data.tags.get(_UID, "") != self._uids.get(machine_type, ""):
            return
        key = run.data.tags.get("trial", machine_type)
        if key in self._runs:  # our request was carried out after we had given it up
            self._client.delete_run(run.info.run_id)
        else:
            self._runs[key] = _KnownRun.from_run(run)

    def _parent(self, machine_type: str) -> _KnownRun:
        if machine_type not in self._runs:
            self._create_run(machine_type, machine_type, self._tags, int(time() * 1000))
        return self._runs[machine_type]

    def _create_run(
        self, key: str, machine_type: str, tags: Mapping[str, str], start_ms: int
    ) -> _KnownRun:
        tags = {
            "machine_type": machine_type,
            _UID: self._uids.get(machine_type, ""),
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "search.run",
            "mlflow.source.type": "LOCAL",
            **tags,
        }
        run = self._client.create_run(self.experiment_id, start_ms, tags, run_name=key)
        self._runs[key] = _KnownRun(run.info.run_id)
        return self._runs[key]

    def _write_trial(self, known: _KnownRun, trial: FrozenTrial, state: str, status: str) -> None:
        epochs = {
            int(name.removeprefix(EPOCH)): values
            for name, values in trial.user_attrs.items()
            if name.startswith(EPOCH)
        }
        last = max(epochs, default=0)
        metrics = [
            Metric(mlflow_ui.metric_name(name), float(value), values["timestamp_ms"], epoch)
            for epoch, values in sorted(epochs.items())
            for name, value in values.items()
            if epoch > known.epochs and name not in STAMPS and value is not None
        ]
        if trial.value is not None:
            ended_ms = _milliseconds(trial.datetime_complete)
            metrics.append(Metric("objective", trial.value, ended_ms, last))
        if COST in trial.user_attrs and not known.has_params:
            started_ms = _milliseconds(trial.datetime_start)
            metrics.append(Metric(COST, float(trial.user_attrs[COST]), started_ms, 0))
        params = all_params(trial)
        tags: dict[str, Any] = {"state": state, "epochs": last}
        told = trial.user_attrs
        tags |= {k: str(told[k]) for k in ("reason", "attempts", "origin") if k in told}

        # `epochs` says which points are there, so it goes with the last of them.
        while len(metrics) > _METRICS_PER_CALL:
            self._client.log_batch(known.run_id, metrics=metrics[:_METRICS_PER_CALL])
            metrics = metrics[_METRICS_PER_CALL:]
        if metrics or last > known.epochs or state != known.state or not known.has_params:
            self._client.log_batch(
                known.run_id,
                metrics,
                [] if known.has_params else [Param(k, str(v)) for k, v in params.items()],
                _run_tags(tags),
            )
        known.state, known.epochs, known.has_params = state, last, True
        if status == known.status:
            return
        if status == "RUNNING":
            self._client.update_run(known.run_id, status=status)
        else:
            ended_ms = _milliseconds(trial.datetime_complete)
            self._client.set_terminated(known.run_id, status, ended_ms)
        known.status = status


def open_client(tracking_uri: str) -> MlflowClient:
    """A client of one URI for runs and models, independent of MLflow's global one."""
    return MlflowClient(tracking_uri, registry_uri=tracking_uri)


def _touch_sqlite(tracking_uri: str, create: bool) -> None:
    """Fail at once on a path that is no database we can write; MLflow would try for minutes."""
    path = Path(make_url(tracking_uri).database or "")
    if not create and not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=_CHECK_TIMEOUT_S)) as connection:
        connection.execute("BEGIN IMMEDIATE")


@contextmanager
def store_errors(tracking_uri: str) -> Iterator[None]:
    """Turn whatever MLflow raises when its store fails into one line of TrackingError."""
    try:
        yield
    except _STORE_ERRORS as error:
        raise TrackingError(f"{tracking_uri}: {_cause(error)}") from error


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first: "[Errno 111] Connection refused", not its wrappings.

    Wrappings also repeat the URI with its password.
    """
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _run_tags(tags: Mapping[str, Any]) -> list[RunTag]:
    return [RunTag(key, str(value)) for key, value in tags.items()]


def _milliseconds(moment: datetime | None) -> int:
    return int((moment.timestamp() if moment else time()) * 1000)
