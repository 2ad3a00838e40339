"""A trial that leaks memory until Ray's memory monitor kills it, on a cluster with little to give.

The threshold is a share of the machine's memory, set a little above what is used now.
"""

from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from search.failures import WORKER_RETRIES
from search.studies import ending_of
from tests.analytic_search import searching
from tests.doubles import events_of
from tests.integration.conftest import TWO_SLOTS
from tests.invariant import check_trials, open_journal, stored_trials

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TO_GIVE = 2.5e9


def test_a_trial_that_leaks_is_killed_and_its_like_avoided_and_the_others_finish(
    tmp_path: Path,
) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 2 * TO_GIVE:
        pytest.skip(f"needs {2 * TO_GIVE:.1e} free bytes of memory, has {memory.available:.1e}")
    threshold = (memory.total - memory.available + TO_GIVE) / memory.total
    environment = {**TWO_SLOTS, "RAY_memory_usage_threshold": f"{threshold:.4f}"}
    options = {"trials": 4, "plan": {"1": "leak"}}
    with searching(tmp_path / "s", options, environment) as search:
        _, stderr = search.communicate(timeout=500)
    assert search.returncode == 0, stderr

    trials = stored_trials(open_journal(tmp_path, "s"), "s")
    check_trials(trials, asked=4)
    leaky = trials["fan"][1]
    assert leaky.user_attrs["reason"].startswith("out of memory: ")
    assert leaky.user_attrs["attempts"] == 1 + WORKER_RETRIES
    assert ending_of(leaky) == "failed"
    assert leaky.constraints["memory"] > 0  # which samplers model
    others = [trial.state for trial in trials["fan"] if trial.number != 1]
    assert others == [TrialState.COMPLETE] * 3
    own = [event["epoch"] for event in events_of(tmp_path / "s") if event["number"] == 1]
    assert own == [1, *(1 + WORKER_RETRIES) * [2]]  # it never got through the second
