"""What early stopping saves: epochs until a search has what full-length random search finds.

    python -m tests.bench.multifidelity [--quick | --all]

Replays recorded learning curves: of 20 learners on the data sets of LCDB, and of own trials
(`own_curves.json`, made by `tests.bench.record_curves`). Epochs are those that all workers trained,
for trials that were stopped or still run as well. One worker shows what early stopping saves;
several also pay for what they train before anything is known.
"""

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from search.config import SamplerConfig, SchedulerConfig
from search.samplers import derive_seed
from tests.bench.curves import Curves, lcdb, lcdb_curves, own_curves
from tests.bench.side_by_side import side_by_side
from tests.bench.simulation import NO_SCHEDULER, simulate

N_RANDOM = 40  # trials of the random search to compare with: those of spaces/complex.yaml
WORKERS = (1, 4)
POINTS = 1000  # shares of the random search's epochs at which searches are looked at
DEFAULT, RANDOM = SamplerConfig(), SamplerConfig(name="random")
ASHA, PAUSING = SchedulerConfig(name="asha"), SchedulerConfig(name="asha_pause")
STOPPED = 4 * N_RANDOM  # trials of a search that stops most of them early
Figures = dict[str, float | list[float] | None]
# Suffix of a key -> by what the best trial is judged: what the search sees, or what it is worth.
JUDGED = {"": "by value", "_by_mean": "by mean of seeds"}
_RESAMPLINGS = 2000


class Arm(NamedTuple):
    sampler: SamplerConfig
    scheduler: SchedulerConfig
    n_trials: int


class Estimate(NamedTuple):
    """A share and its 95 % bootstrap interval over tasks."""

    mean: float
    low: float
    high: float

    @property
    def shown(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


ARMS = {
    "random": Arm(RANDOM, NO_SCHEDULER, N_RANDOM),
    "random, asha": Arm(RANDOM, ASHA, STOPPED),
    "random, asha_pause": Arm(RANDOM, PAUSING, STOPPED),
    "auto": Arm(DEFAULT, NO_SCHEDULER, N_RANDOM),
    "auto, asha_pause": Arm(DEFAULT, PAUSING, STOPPED),
}
OURS = list(ARMS)[-1]


def gains(curves: Curves, arm: Arm, workers: int, seed: int) -> tuple[np.ndarray, float]:
    """What a search has found after each share of the epochs of `N_RANDOM` full random trials.

    Returns:
        Of the best complete trial, `(2, POINTS + 1)`: its value, and the mean over seeds of its
        setting; 0 is what a single random trial is expected to have, and every search to start
        with, 1 what is expected of the best of `N_RANDOM`. Column i is after i / POINTS of the
        epochs. And the share of them that the whole search spent.
    """
    trials, reports = simulate(
        curves.replay(seed),
        curves.space,
        sampler=arm.sampler,
        scheduler=arm.scheduler,
        n_trials=arm.n_trials,
        epochs=curves.epochs[-1],
        workers=workers,
        seed=seed,
    )
    params = {trial.number: trial.params for trial in trials}
    budget = N_RANDOM * curves.trained[-1]
    single, target = (np.array(curves.best_of_random(n))[:, None] for n in (1, N_RANDOM))
    best = np.repeat(single, POINTS + 1, 1)
    for report in reports:
        value = report.step.value
        is_complete = report.step.epoch == curves.epochs[-1] and value is not None
        if is_complete and value > best[0, -1]:
            column = math.ceil(round(report.time_s * workers / budget * POINTS, 6))
            best[:, column:] = [[value], [curves.mean(params[report.number])]]
    return (best - single) / (target - single), reports[-1].time_s * workers / budget


class Found(NamedTuple):
    """What the searches of an arm found."""

    gains: np.ndarray  # (tasks, 2, POINTS + 1), means over searches
    spent: np.ndarray  # (tasks,)


def search(curves: Curves, workers: int, n_searches: int) -> dict[str, tuple[np.ndarray, float]]:
    """Let each arm search a task: means over searches of what `gains` returns."""
    seeds = [derive_seed(curves.name, index) for index in range(n_searches)]
    means = {}
    for name, arm in ARMS.items():
        found, spent = zip(*(gains(curves, arm, workers, seed) for seed in seeds), strict=True)
        means[name] = np.mean(found, 0), float(np.mean(spent))
    return means


def measure(tasks: Sequence[Curves], workers: int, n_searches: int) -> dict[str, Found]:
    """Let each arm search each task."""
    work = partial(search, workers=workers, n_searches=n_searches)
    of_tasks = side_by_side(work, tasks, "tasks")
    return {
        name: Found(*(np.array(column) for column in zip(*rows, strict=True)))
        for name, rows in ((name, [of_task[name] for of_task in of_tasks]) for name in ARMS)
    }


def shares(gains: np.ndarray) -> np.ndarray:
    """Share of the epochs `(n,)` after which gains `(n, POINTS + 1)` reach 1; NaN for never."""
    reached = gains >= 1 - 1e-9  # where the best is certain to be found, rounding decides
    return np.where(reached.any(-1), reached.argmax(-1) / POINTS, np.nan)


def mean_share(gains: np.ndarray) -> Estimate:
    """Mean over tasks; never counts as all."""
    counted = np.nan_to_num(shares(gains), nan=1.0)
    drawn = np.random.default_rng(0).choice(counted, (_RESAMPLINGS, len(counted))).mean(1)
    return Estimate(counted.mean(), *np.quantile(drawn, [0.025, 0.975]))


def share_of_mean(gains: np.ndarray) -> Estimate:
    """Share after which the mean gain over tasks reaches 1; never counts as all."""
    rng, n = np.random.default_rng(0), len(gains)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLINGS) / n
    drawn = np.nan_to_num(shares(weights @ gains), nan=1.0)
    mean = np.nan_to_num(shares(gains.mean(0, keepdims=True)), nan=1.0)[0]
    return Estimate(mean, *np.quantile(drawn, [0.025, 0.975]))


def print_lcdb(found: dict[str, Found], workers: int, lengths: np.ndarray) -> None:
    """Print a row per arm, then what ours needs by the length of the curves."""
    heads = [f"{f'{how}, never':>28}{'of the mean gain':>22}" for how in JUDGED.values()]
    print(f"{f'LCDB, workers: {workers}':20}{''.join(heads)}{'spent':>7}{'tasks':>7}")
    rows = dict(found)
    for length in np.unique(lengths).tolist():
        rows[f"  of {length}"] = Found(*(column[lengths == length] for column in found[OURS]))
    for name, row in rows.items():
        cells = ""
        for judged in np.moveaxis(row.gains, 1, 0):
            never = np.isnan(shares(judged)).sum()
            cells += f"{f'{mean_share(judged).shown}, {never}':>28}"
            cells += f"{share_of_mean(judged).shown:>22}"
        print(f"{name:20}{cells}{row.spent.mean():7.2f}{len(row.spent):7}", flush=True)


def print_own(found: dict[str, Found], workers: int, names: Sequence[str]) -> None:
    """Print a row per arm, by value."""
    head = f"own, workers: {workers}"
    print(f"{head:20}" + "".join(f"{name:>10}" for name in names))
    for name, row in found.items():
        needed = shares(row.gains[:, 0]).tolist()
        cells = [f"{'never' if math.isnan(share) else f'{share:.3f}':>10}" for share in needed]
        print(f"{name:20}{''.join(cells)}", flush=True)


def figures(found: dict[str, Found], own: dict[str, Found], names: Sequence[str]) -> Figures:
    """What ours needs, for the line of JSON."""
    flat: Figures = {}
    for suffix, judged in zip(JUDGED, np.moveaxis(found[OURS].gains, 1, 0), strict=True):
        for key, (mean, *interval) in (
            ("epochs_ratio_to_random", mean_share(judged)),
            ("epochs_ratio_of_mean_gain", share_of_mean(judged)),
        ):
            flat |= {f"{key}{suffix}": mean, f"{key}{suffix}_ci": interval}
    for name, share in zip(names, shares(own[OURS].gains[:, 0]).tolist(), strict=True):
        flat[f"epochs_ratio_own_{name}"] = None if math.isnan(share) else share
    return flat


def main() -> None:
    """Print both tables, then the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.multifidelity")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="every 20th data set, a search of each")
    size.add_argument(
        "--all", action="store_true", help="every data set, not every 7th: more than an hour"
    )
    options = parser.parse_args()
    # Searches of a data set of LCDB, and of own trials; one in so many data sets.
    n_searches, n_own, every = (1, 1, 20) if options.quick else (5, 3, 7)
    if options.all:
        n_own, every = 16, 1
    print(
        f"share of the epochs of {N_RANDOM} full random trials after which the best complete trial"
    )
    print("is as good as random search expects of its best: of the mean of")
    print(
        f"{n_searches} searches, mean over tasks, never being 1; and of the mean gain of all tasks"
    )
    tasks, own = list(lcdb_curves(lcdb()))[::every], list(own_curves())
    lengths, names = np.array([task.epochs[-1] for task in tasks]), [task.name for task in own]
    of_workers = {}
    for workers in WORKERS:
        found, of_own = measure(tasks, workers, n_searches), measure(own, workers, n_own)
        print_lcdb(found, workers, lengths)
        print_own(of_own, workers, names)
        of_workers[f"workers_{workers}"] = figures(found, of_own, names)
    first = of_workers[f"workers_{WORKERS[0]}"]
    print(json.dumps(first | of_workers | {"searches": n_searches, "datasets": len(tasks)}))


if __name__ == "__main__":
    main()
