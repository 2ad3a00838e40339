"""What takes seconds to start, once for all tests."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from search import tracking
from search.launch import cluster
from search.tracking import check
from tests.postgres_server import PASSWORD, Postgres
from tests.tracking_fixtures import Server, WatchedClient

TWO_SLOTS = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2, "GPU": 0}'}  # whatever the machine has


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a small cluster, started as a search starts its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in TWO_SLOTS.items():
            patch.setenv(name, value)
        with cluster(None):
            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store in SQLite without runs, to be copied."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    check(f"sqlite:///{path}")
    return path


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[WatchedClient]:
    monkeypatch.setattr(tracking, "MlflowClient", WatchedClient)
    monkeypatch.setattr(WatchedClient, "calls", Counter())
    monkeypatch.setattr(WatchedClient, "fails", None)
    return WatchedClient


@pytest.fixture
def sqlite_uri(empty_store: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server, and its password where libpq looks for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        server = Postgres()
        try:
            yield server
        finally:
            server.remove()


@pytest.fixture
def database(postgres: Postgres) -> str:
    """The URI of an empty database."""
    return postgres.new_database()
