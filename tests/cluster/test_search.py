"""A search on three hosts when nothing breaks; the others break things."""

import pytest

from tests.cluster.rack import Rack, trial_workers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

TRIALS, EPOCHS = 24, 2


def test_all_hosts_train_and_everyone_agrees_on_every_trial(rack: Rack) -> None:
    with rack.searching("quiet", f"--trials {TRIALS} --epochs {EPOCHS}") as search:
        assert search.wait() == 0, search.stderr
    rack.check(search, asked=TRIALS)
    for host in (rack.head, *rack.workers):
        assert trial_workers(host), f"no trial ran on {host.name}"
