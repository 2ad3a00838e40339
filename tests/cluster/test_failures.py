"""One search in which everything breaks, one thing after the other, and that loses nothing.

The tests are one story, told in order; what must hold at its end is `tests.invariant`.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
from optuna.trial import FrozenTrial

from tests.cluster.hosts import Host
from tests.cluster.rack import URI, Rack, Search, trial_workers
from tests.invariant import stored_runs
from tests.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

STUDY, TYPE, TRIALS, EPOCHS = "broken", "fan", 96, 4
EPOCH_S = 8.0  # so that the search lasts longer than the story, wherever it is told
SLOW_S = 300.0  # deadline of what takes seconds on a machine with nothing else to do


class Watched:
    """A search that goes on, and its trials as they were when they first had ended."""

    def __init__(self, rack: Rack) -> None:
        self.rack = rack
        self.ended: dict[int, FrozenTrial] = {}
        self.search: Search

    def look(self) -> int:
        """Note what has ended; how many trials that are."""
        for trial in self.rack.trials(STUDY).get(TYPE, []):
            if trial.state.is_finished():
                self.ended.setdefault(trial.number, trial)
        return len(self.ended)

    def goes_on(self, n: int = 1) -> None:
        """Wait until so many more trials have ended."""
        wanted = self.look() + n
        wait_until(lambda: self.look() >= wanted or self.is_over(), SLOW_S)
        assert not self.is_over(), f"too early:\n{self.search.stderr}"

    def is_over(self) -> bool:
        return self.search.process.poll() is not None

    def logged(self) -> set[str]:
        """Names of the runs that have ended for MLflow, whose server need not answer."""
        runs = stored_runs(f"sqlite:///{self.rack.network.shared}/mlflow/mlflow.db", STUDY)
        return {run.info.run_name for run in runs if run.info.status != "RUNNING"}


def begin(rack: Rack) -> AbstractContextManager[Search]:
    return rack.searching(STUDY, f"--trials {TRIALS} --epochs {EPOCHS}")


@pytest.fixture(scope="module")
def watched(rack: Rack) -> Iterator[Watched]:
    watched = Watched(rack)
    rack.pace(EPOCH_S)
    with begin(rack) as watched.search:
        watched.goes_on()
        yield watched
    rack.pace(0)


@pytest.fixture(scope="module")
def again(watched: Watched) -> Iterator[Search]:
    """The same command after the head was lost."""
    with begin(watched.rack) as watched.search:
        yield watched.search


def training(host: Host) -> set[int]:
    """Processes that serve trials on a host now; waits for the first.

    By their logs, because Ray gives a process another name between two steps of a trial.
    """

    def found() -> set[int]:
        running = {int(pid) for pid in host.run("ps -eo pid=").split()}
        return running & set(trial_workers(host))

    wait_until(lambda: bool(found()), SLOW_S)
    return found()


def wait_for_others(host: Host, served: set[int]) -> None:
    """Wait until a host serves trials again, in another process."""
    wait_until(lambda: bool(set(trial_workers(host)) - served), SLOW_S)


def hold(seconds: float) -> None:
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, 2 * seconds)


def test_a_killed_trial_is_taken_up(watched: Watched) -> None:
    worker = watched.rack.workers[0]
    victims, served = training(worker), set(trial_workers(worker))
    worker.run(f"kill -9 {' '.join(map(str, victims))}")
    wait_for_others(worker, served)
    watched.goes_on()


def test_mlflow_stops(watched: Watched) -> None:
    watched.rack.stop_mlflow()
    watched.goes_on()


def test_a_worker_without_ray_gets_it_again(watched: Watched) -> None:
    worker = watched.rack.workers[0]
    served = training(worker) | set(trial_workers(worker))
    worker.run("pkill -9 -x raylet")
    wait_for_others(worker, served)
    watched.goes_on()


def test_a_worker_is_cut_off_for_half_a_minute(watched: Watched) -> None:
    worker = watched.rack.workers[1]
    training(worker)
    watched.rack.network.cut(worker)
    hold(30)
    watched.rack.network.join(worker)
    watched.goes_on()
    training(worker)
    watched.rack.wait_for_nodes(3)


def test_mlflow_comes_back_after_more_than_a_minute(watched: Watched) -> None:
    watched.rack.start_mlflow()
    names = {f"{TYPE}/{number}" for number in watched.ended}
    wait_until(lambda: watched.logged() >= names, SLOW_S)


def test_a_worker_is_cut_off_for_good(watched: Watched) -> None:
    worker = watched.rack.workers[1]
    training(worker)
    watched.rack.network.cut(worker)
    watched.rack.wait_for_nodes(2)
    watched.goes_on()


def test_the_head_loses_its_ray_and_a_new_machine_comes_with_the_next(watched: Watched) -> None:
    rack = watched.rack
    rack.workers[1].kill()
    rack.network.add(rack.workers[1].name)
    rack.head.run("pkill -9 -x gcs_server; pkill -9 -x raylet; pkill -9 -f '[m]onitor.py'")
    assert watched.search.wait() != 0
    assert watched.look() < TRIALS
    rack.up()


def test_the_same_command_goes_on_and_mlflow_stops_for_good(
    watched: Watched, again: Search
) -> None:
    watched.goes_on()
    watched.rack.stop_mlflow()
    watched.rack.pace(0)
    assert again.wait() == 2, again.stderr
    assert f"error: {URI}" in again.stderr.splitlines()[-1]
    assert watched.look() == TRIALS


def test_every_trial_is_there_once_mlflow_is(watched: Watched) -> None:
    rack = watched.rack
    rack.start_mlflow()
    with begin(rack) as search:
        assert search.wait() == 0, search.stderr
    rack.check(search, asked=TRIALS, earlier={TYPE: list(watched.ended.values())})
    attempts = [trial.user_attrs.get("attempts", 1) for trial in rack.trials(STUDY)[TYPE]]
    assert sum(attempts) - TRIALS >= 4  # killed, without Ray, cut off for good, the head lost
