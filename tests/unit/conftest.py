import sys
from collections.abc import Iterator

import pytest

from tests.store_fixtures import Clock


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks have no work for two threads, which on a busy machine wait for each other."""
    torch = sys.modules.get("torch")  # not imported for those tests that do without it
    if torch is None:
        yield
        return
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Optuna's journal is synced to the disk after each line; here no power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of waiting for storage."""
    made = Clock()
    monkeypatch.setattr("search.shared_files.time", made)
    return made
