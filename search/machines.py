"""Asks a cluster's autoscaler for machines, as many as the trials that are left can use.

A cluster without an autoscaler does not listen. The wish stands until it is changed, whoever made
it, so a process of its own withdraws it if the search is killed (`search/wish_guard.py`).
"""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from optuna.trial import FrozenTrial
from ray.autoscaler.sdk import request_resources

from search import wish_guard
from search.studies import StudyError, TypeStudy

_MOST_TRIALS = 64  # at once; how many machines that may be is for the cluster's own file to say
_REPEAT_S = 60.0  # another search on this cluster may have made its wish, or withdrawn it
_POLL_S = 1.0
_ROUNDING = 1e-9  # five times 0.2 of a GPU are one

logger = logging.getLogger(__name__)


@contextmanager
def withdrawn_at_the_end() -> Iterator[None]:
    """Let machines go when the body ends, in whichever way this process does."""
    address = ray.get_runtime_context().gcs_address
    # A session of its own: what ends the search, such as Ctrl-C, must not end this.
    guard = subprocess.Popen(
        [sys.executable, "-m", wish_guard.__name__, address],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        _ask_for([])
        guard.communicate(wish_guard.DONE)


def wait_for_machine(bundle: Mapping[str, float]) -> None:
    """Return when the cluster has a CPU; one without is a head that steers and never trains.

    Args:
        bundle: Resources of a trial, by Ray's names.
    """
    if ray.cluster_resources().get("CPU", 0):
        return
    logger.info(
        "the cluster has no machine for trials yet: its autoscaler is asked for one; `ray status` "
        "shows what is on its way"
    )
    request_resources(bundles=[dict(bundle)])
    while not ray.cluster_resources().get("CPU", 0):
        time.sleep(_POLL_S)


def n_fitting(bundle: Mapping[str, float]) -> int:
    """How many trials fit into the cluster as it is now: each has to fit into one machine.

    Args:
        bundle: Resources of a trial, by Ray's names.
    """
    return sum(
        min(_n_fitting(name, amount, has.get(name, 0)) for name, amount in bundle.items())
        for has in _machines()
    )


def _n_fitting(name: str, amount: float, has: float) -> int:
    """As `n_fitting`, for one resource of one machine; a share of a GPU lies on a single one."""
    if name == "GPU" and amount < 1:
        return int(has) * int(1 / amount + _ROUNDING)
    return int(has / amount + _ROUNDING)


def require_machine(bundle: Mapping[str, float]) -> None:
    """Refuse what Ray would wait for in silence and for ever.

    Args:
        bundle: Resources of a trial, by Ray's names.

    Raises:
        StudyError: No machine has all of it.
    """
    if n_fitting(bundle):
        return
    kinds = sorted({_shown({name: has.get(name, 0) for name in bundle}) for has in _machines()})
    raise StudyError(
        f"resources must fit into one machine of the cluster, got {_shown(bundle)}, but its "
        f"machines have {'; '.join(kinds)}: lower `resources` in the space file, or add a machine "
        "that has it all"
    )


def _machines() -> list[dict[str, float]]:
    """What each machine has, by Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _shown(bundle: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())


class Wish:
    """Keeps the autoscaler's target at what the trials that are left can use at once.

    Args:
        studies: One per machine type.
        n_trials: Asked per machine type.
        parallel: Most trials of a machine type at once.
        resources: Of one trial, as `launch.trial_resources` returns them.
    """

    def __init__(
        self,
        studies: Mapping[str, TypeStudy],
        n_trials: int,
        parallel: int | None,
        resources: Mapping[str, float],
    ) -> None:
        self._studies, self._n_trials = dict(studies), n_trials
        self._parallel = parallel or _MOST_TRIALS
        self._bundle = bundle_of(resources)
        self._made, self._told_at = -1, 0.0

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """See Observer."""
        self.make()

    def make(self) -> None:
        """Tell the autoscaler, if it does not know."""
        n_trials = self.n_trials()
        if n_trials != self._made or time.monotonic() > self._told_at + _REPEAT_S:
            _ask_for([self._bundle] * n_trials)
            self._made, self._told_at = n_trials, time.monotonic()

    def n_trials(self) -> int:
        """How many trials could run now on a cluster that is large enough."""
        left = [study.n_left(self._n_trials) for study in self._studies.values()]
        return min(_MOST_TRIALS, sum(min(self._parallel, n) for n in left))


def bundle_of(resources: Mapping[str, float]) -> dict[str, float]:
    """Resources of a trial by Ray's names, without those it does not need."""
    return {name.upper(): amount for name, amount in resources.items() if amount}


def threads_of(resources: Mapping[str, float]) -> int:
    """Threads that a worker with these resources computes with."""
    return max(1, int(resources["cpu"]))


def _ask_for(bundles: list[dict[str, float]]) -> None:
    """Make the wish; no search ends for one that cannot be made now."""
    try:
        request_resources(bundles=bundles)
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        n = len(bundles)
        logger.warning("the autoscaler could not be asked for room for %d trials: %s", n, error)
