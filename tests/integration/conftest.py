"""A small Ray cluster that the tests of a session share."""

from collections.abc import Iterator

import pytest

from search.launch import cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Two slots, whatever the machine has, started as a search starts its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2, "GPU": 0}')
        with cluster(None):
            yield
