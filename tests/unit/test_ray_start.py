"""Which Ray a search runs on; the rest of `launch` is tested on a real one."""

import pytest

from search import launch


def test_without_an_address_a_search_joins_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(launch.ray, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(launch.ray, "shutdown", lambda: None)
    with launch.cluster(None):
        pass
    # None would have Ray join the cluster that `ray start` last left a note of, dead or alive.
    assert asked["address"] == "local"
