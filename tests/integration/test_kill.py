"""A search whose driver is killed many times, or whose database restarts: nothing lost or twice."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.entities import Run
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.postgres import PostgresError, read_postgres
from search.report import main as report
from tests.invariant import check_invariant, check_trials, open_journal, stored_runs, stored_trials
from tests.postgres_server import PASSWORD, Postgres
from tests.search_folder import Folder
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

N_TRIALS, N_EPOCHS = 8, 8
SPACE = f"""
study: {{trials: {N_TRIALS}, epochs: {N_EPOCHS}}}
scheduler: {{SCHEDULER}}
confirmation: {{top: 0}}
resources: {{cpu: 2}}
"""
# Few end early, so that there is enough left to kill.
PAUSING = "{name: asha_pause, grace_epochs: 4, reduction_factor: 1.5}"
KILLS = {"journal": 10, "postgres": 4}  # each costs a start of the driver
STARTING_S = 3.0  # about what a driver takes until its first trial


class Search(Folder):
    """One machine type; storage and MLflow at one URI, or files, where trials pause as well."""

    def __init__(self, home: Path, empty_store: Path, uri: str | None) -> None:
        scheduler = "{name: none}" if uri else PAUSING
        super().__init__(home, empty_store, SPACE.replace("{SCHEDULER}", scheduler), ["fan"])
        self.uri = uri
        self.options += ["--storage", uri] if uri else []

    @contextmanager
    def storage(self) -> Iterator[BaseStorage]:
        if self.uri is None:
            yield open_journal(self.out, "s")
        else:
            with read_postgres(self.uri) as storage:
                yield storage

    def trials(self) -> dict[str, list[FrozenTrial]]:
        if not (self.out / "s").exists():
            return {}
        try:
            with self.storage() as storage:
                return stored_trials(storage, "s")
        except PostgresError:  # killed before it made any table
            return {}

    def runs(self) -> list[Run]:
        return stored_runs(self.uri, "s") if self.uri else super().runs()

    def n_epochs(self) -> int:
        return sum(len(t.intermediate_values) for ts in self.trials().values() for t in ts)

    def wait_for_epochs(self, driver: subprocess.Popen[str], n: int) -> None:
        def is_there() -> bool:
            assert driver.poll() is None, driver.communicate()
            return self.n_epochs() >= n

        wait_until(is_there)


@pytest.fixture(params=["journal", "postgres"])
def search(request: pytest.FixtureRequest, tmp_path: Path, empty_store: Path) -> Iterator[Search]:
    uri = None
    if request.param == "postgres":
        uri = request.getfixturevalue("database")
    search = Search(tmp_path, empty_store, uri)
    yield search
    for process in search.processes():
        os.kill(process, signal.SIGKILL)


def test_a_driver_killed_again_and_again(search: Search, ray_cluster: str) -> None:
    draw = random.Random(search.uri is None)
    earlier = []
    for kill in range(KILLS["postgres" if search.uri else "journal"]):
        with search.running("--address", ray_cluster) as driver:
            if kill % 3 == 1:  # while it starts, or goes on with what it finds
                time.sleep(draw.uniform(0.0, STARTING_S))
            else:
                told = search.n_epochs() if kill else 0
                search.wait_for_epochs(driver, told + draw.randint(1, 5))
                time.sleep(draw.uniform(0.0, 0.2))
            driver.kill()
        earlier.append(search.trials())
    assert any(not t.state.is_finished() for found in earlier for t in found["fan"])

    last = search.run("--address", ray_cluster)
    assert last.exit_code == 0, last.stderr
    with search.storage() as storage:
        check_invariant(last.summary, storage, asked=N_TRIALS, earlier=earlier[-1])
    for before in earlier:
        check_trials(last.trials, asked=N_TRIALS, earlier=before)


def test_the_database_restarts_twice(
    tmp_path: Path, empty_store: Path, database: str, postgres: Postgres, ray_cluster: str
) -> None:
    search = Search(tmp_path, empty_store, database)

    def restart(driver: subprocess.Popen[str]) -> None:
        for n_epochs in (6, 20):
            search.wait_for_epochs(driver, n_epochs)
            postgres.stop()
            time.sleep(1.0)
            postgres.start()

    done = search.run("--address", ray_cluster, meanwhile=restart)
    assert done.exit_code == 0, done.stderr
    assert "the database works again" in done.stderr
    assert "Traceback" not in done.stderr
    with search.storage() as storage:
        check_invariant(done.summary, storage, asked=N_TRIALS)
    assert report(["--study", "s", "--out", str(search.out)]) == 0
    assert not (search.out / "s" / "optuna.journal").exists()


def test_the_password_is_nowhere(
    tmp_path: Path, empty_store: Path, database: str, ray_cluster: str
) -> None:
    search = Search(tmp_path, empty_store, database)
    seen: set[bytes] = set()

    def look(driver: subprocess.Popen[str]) -> None:
        search.wait_for_epochs(driver, 1)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                seen.add((process / "cmdline").read_bytes())
            except OSError:
                continue

    done = search.run("--trials", "1", "--address", ray_cluster, meanwhile=look)
    assert done.exit_code == 0, done.stderr
    assert any(database.encode() in command for command in seen)
    told = [done.stdout, done.stderr, *(str(run.to_dictionary()) for run in done.runs)]
    logs = Path("/tmp/ray/session_latest/logs")
    files = [path for top in (search.out, logs) for path in top.rglob("*") if path.is_file()]
    assert not any(PASSWORD in text for text in told)
    secret = PASSWORD.encode()
    assert not any(secret in command for command in seen)
    assert [path for path in files if secret in path.read_bytes()] == []
