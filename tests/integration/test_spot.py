"""Machines that are taken back with a notice, as spot machines are: no trial pays for it.

The notice itself is AWS's; what `cluster/gpu.yaml` does when it comes is done here by hand, to a
whole search on Ray nodes of this machine. `test_resume.py` gives the notice to the search itself.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.cluster_utils import Cluster

from search.failures import WORKER_RETRIES
from tests.invariant import check_invariant, open_journal
from tests.troubled_search import TroubledFolder, space_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RAY = Path(sys.executable).with_name("ray")
NOTICE = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "110"]
N_TAKEN = WORKER_RETRIES + 1


def test_machines_that_are_taken_back_do_not_count_against_a_trial(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_OVERRIDE_RESOURCES", raising=False)  # of the cluster others share
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder = TroubledFolder(tmp_path, empty_store, space_of(2), ["fan"])
    folder.follow({0: "wait"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temp:
        monkeypatch.setenv("RAY_TMPDIR", temp)  # where Ray notes which cluster is the current one
        summary = _take_machines_back(folder)
    check_invariant(summary, open_journal(folder.out, "s"), asked=2)
    assert summary["machine_types"]["fan"]["promoted"]
    trials = folder.trials()["fan"]
    assert [trial.state for trial in trials] == 2 * [TrialState.COMPLETE]
    assert trials[0].user_attrs["attempts"] == 1 + N_TAKEN
    assert folder.epochs(0) == [1, *(1 + N_TAKEN) * [2], 3]


def _take_machines_back(folder: TroubledFolder) -> dict[str, object]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        node = cluster.add_node(num_cpus=1)
        with folder.running("--address", cluster.address) as search:
            for n in range(1, N_TAKEN + 1):
                wait_until(lambda n=n: folder.epochs(0).count(2) == n)
                drain = [RAY, "drain-node", "--address", cluster.address, *NOTICE]
                drain += ["--reason-message", "spot", "--node-id", node.node_id]
                subprocess.run(drain, check=True)
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=1)
            wait_until(lambda: folder.epochs(0).count(2) == N_TAKEN + 1)
            folder.let_go()
            stdout, stderr = search.communicate(timeout=240)
            assert search.returncode == 0, stderr
    finally:
        cluster.shutdown()
    return dict(json.loads(stdout.splitlines()[-1]))
