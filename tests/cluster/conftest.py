"""The rack, brought up once for all tests that need it."""

from collections.abc import Iterator

import pytest

from tests.cluster import hosts
from tests.cluster.rack import Rack


@pytest.fixture(scope="session", autouse=True)
def _possible() -> None:
    if reason := hosts.missing():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def rack(_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """Head and two workers between `ray up` and `ray down`."""
    with hosts.network(tmp_path_factory.mktemp("rack") / "hosts") as network:
        rack = Rack(network)
        rack.up()
        yield rack
        rack.down()
