"""What takes seconds to start, once for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from search.launch import cluster
from search.tracking import check

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
