"""Machines that are taken back with a notice, as spot machines are: no trial pays for it.

The notice itself is AWS's; what `cluster/gpu.yaml` does when it comes is done here by hand, on
Ray nodes of this machine.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.cluster_utils import Cluster

from search.failures import WORKER_RETRIES
from tests.analytic_search import searching
from tests.invariant import check_trials, open_journal, stored_trials
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RAY = Path(sys.executable).with_name("ray")
NOTICE = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "110"]


def test_machines_that_are_taken_back_do_not_count_against_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_OVERRIDE_RESOURCES", raising=False)  # of the cluster others share
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temp:
        monkeypatch.setenv("RAY_TMPDIR", temp)  # where Ray notes which cluster is the current one
        _take_machines_back(tmp_path)


def _take_machines_back(tmp_path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    n_taken = WORKER_RETRIES + 1
    waiting = tmp_path / "s" / "checkpoints" / "waiting"

    def n_waiting() -> int:
        return len(waiting.read_text().split()) if waiting.exists() else 0

    try:
        node = cluster.add_node(num_cpus=1)
        options = {"trials": 1, "address": cluster.address, "plan": {"0": "wait"}}
        with searching(tmp_path / "s", options) as search:
            for n in range(1, n_taken + 1):
                wait_until(lambda n=n: n_waiting() == n)
                drain = [RAY, "drain-node", "--address", cluster.address, *NOTICE]
                drain += ["--reason-message", "spot", "--node-id", node.node_id]
                subprocess.run(drain, check=True)
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=1)
            wait_until(lambda: n_waiting() == n_taken + 1)
            waiting.with_name("go").touch()
            _, stderr = search.communicate(timeout=120)
            assert search.returncode == 0, stderr
    finally:
        cluster.shutdown()
    trials = stored_trials(open_journal(tmp_path, "s"), "s")
    check_trials(trials, asked=1)
    (trial,) = trials["fan"]
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["attempts"] == 1 + n_taken
