"""Optuna's own dashboard opens a study's journal."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.storages import JOURNAL
from tests.report_fixtures import make_full_study

pytestmark = pytest.mark.integration

DASHBOARD = Path(sys.executable).with_name("optuna-dashboard")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past any proxy


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        for machine_type in ("fan", "valve"):
            make_full_study(tmp_path / "s", machine_type, n_trials=6)
    return tmp_path / "s" / JOURNAL


@pytest.fixture
def dashboard(journal: Path) -> Iterator[str]:
    """Its address."""
    assert shutil.which(DASHBOARD), "optuna-dashboard belongs to the extra `test`"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(DASHBOARD), str(journal), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        try:
            wait_for(f"http://127.0.0.1:{port}/api/meta", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            DIRECT.open(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"the dashboard did not answer: {process.communicate()[0]}")


def get(url: str) -> Any:
    with DIRECT.open(url, timeout=30) as response:
        return json.load(response)


def test_the_dashboard_opens_the_journal(journal: Path, dashboard: str) -> None:
    before = journal.read_bytes()
    studies = get(f"{dashboard}/api/studies")["study_summaries"]
    by_name = {study["study_name"]: study["study_id"] for study in studies}
    assert set(by_name) == {"s/fan", "s/valve"}
    trials = get(f"{dashboard}/api/studies/{by_name['s/fan']}?after=0")["trials"]
    assert len(trials) == 10
    assert {trial["state"] for trial in trials} == {"Complete", "Pruned", "Fail", "Running"}
    assert journal.read_bytes() == before
