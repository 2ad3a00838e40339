"""A trial and a confirmation that leak memory until Ray's monitor kills them, in a whole search.

Its cluster has little to give: the monitor's threshold is a share of the machine's memory, set a
little above what is used now.
"""

from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from search.failures import WORKER_RETRIES
from search.studies import ending_of
from tests.invariant import check_invariant, open_journal
from tests.troubled_search import CONFIRMATION, TroubledFolder, space_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TO_GIVE = 4e9  # of which driver, Ray and two workers take a half
N_TRIALS = 4


def test_what_leaks_is_killed_and_a_trial_s_like_avoided_and_the_others_finish(
    tmp_path: Path, empty_store: Path
) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 2 * TO_GIVE:
        pytest.skip(f"needs {2 * TO_GIVE:.1e} free bytes of memory, has {memory.available:.1e}")
    threshold = (memory.total - memory.available + TO_GIVE) / memory.total
    folder = TroubledFolder(tmp_path, empty_store, space_of(N_TRIALS), ["fan"])
    folder.follow({1: "leak", CONFIRMATION: "leak"})
    done = folder.run(environment={"RAY_memory_usage_threshold": f"{threshold:.4f}"})
    assert done.exit_code == 0, done.stderr
    check_invariant(done.summary, open_journal(folder.out, "s"), asked=N_TRIALS)
    assert done.summary["machine_types"]["fan"]["promoted"]

    trials = done.trials["fan"]
    leaky = trials[1]
    assert leaky.user_attrs["reason"].startswith("out of memory: ")
    assert leaky.user_attrs["attempts"] == 1 + WORKER_RETRIES
    assert ending_of(leaky) == "failed"
    assert leaky.constraints["memory"] > 0  # which samplers model
    others = [trial.state for trial in trials if trial.number != 1]
    assert others == [TrialState.COMPLETE] * 3
    attempts = [1, *(1 + WORKER_RETRIES) * [2]]  # it never got through the second
    assert folder.epochs(1) == attempts

    assert folder.epochs(CONFIRMATION) == attempts
    assert "confirmed with fresh seed 1 of 1: out of memory: " in done.stderr
    assert "fan: no finalist is confirmed, the best trial stands" in done.stderr
