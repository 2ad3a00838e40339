"""How good the configurations are that a search finds, on 15 tables of real trainings.

    python -m tests.bench.search_quality [--quick]

The search sees the noisy objective of one seed; judged is the true mean of the configuration that
it would choose, as normalised regret: 0 is a table's best configuration, 1 its median one. Workers
take the training times of the table, so results come back out of order.
"""

import argparse
import json
from functools import partial
from typing import Any

import numpy as np

from search.config import SamplerConfig
from search.samplers import derive_seed
from search.space import Params
from tests.bench.side_by_side import side_by_side
from tests.bench.simulation import Step, simulate
from tests.bench.tables import Table, tasks

N_TRIALS, WORKERS = 100, 10
AFTER = (25, 50, N_TRIALS)
DEFAULT, RANDOM = SamplerConfig(), SamplerConfig(name="random")
# Sampler, workers, deterministic, searches per seed: random ones cost little, so their mean can be
# exact.
ARMS = {
    "random": (RANDOM, 1, False, 8),
    DEFAULT.name: (DEFAULT, 1, False, 1),
    f"{DEFAULT.name}, {WORKERS} workers": (DEFAULT, WORKERS, False, 1),
    "  deterministic": (DEFAULT, WORKERS, True, 1),
}


def regrets(
    table: Table, sampler: SamplerConfig, workers: int, deterministic: bool, seed: int
) -> np.ndarray:
    """Regret `(N_TRIALS,)` of the choice after each trial that ended, and the workers' busy share.

    Returns:
        `(N_TRIALS + 1,)`, the busy share last.
    """
    rows: list[int] = []

    def replay(params: Params, number: int) -> list[Step]:
        rows.append(table.row(params))
        return [Step(1, table.draw(rows[-1], seed, number), table.seconds[rows[-1]])]

    trials, reports = simulate(
        replay,
        table.space,
        sampler=sampler,
        n_trials=N_TRIALS,
        workers=workers,
        deterministic=deterministic,
        seed=seed,
    )
    ended = np.array([report.number for report in reports])
    values = np.array([trials[number].value for number in ended])
    best = [values[:n].argmax() for n in range(1, N_TRIALS + 1)]
    busy = sum(report.step.seconds for report in reports) / workers / reports[-1].time_s
    return np.append(table.regret[np.array(rows)[ended[best]]], busy)


def search(task: tuple[Any, str], n_seeds: int) -> dict[str, np.ndarray]:
    """What every arm's searches of one table make, `(searches, N_TRIALS + 1)`: see `regrets`."""
    table = Table(*task)
    return {
        name: np.stack(
            [regrets(table, *arm, derive_seed(table.name, i)) for i in range(n_seeds * repeats)]
        )
        for name, (*arm, repeats) in ARMS.items()
    }


def main() -> None:
    """Print a row per arm, then the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.search_quality")
    parser.add_argument("--quick", action="store_true", help="3 tables and 2 seeds")
    quick = parser.parse_args().quick
    work = partial(search, n_seeds=2 if quick else 8)
    searched = side_by_side(work, tasks(quick), "tables")
    found = {name: [of_table[name] for of_table in searched] for name in ARMS}

    print(f"regret after trials, and its standard error; {len(found['random'])} tables")
    print(f"{'':20}" + "".join(f"{n:>8} trials" for n in AFTER) + "   busy   searches")
    means: dict[str, dict[int, float]] = {}
    busy: dict[str, float] = {}
    for name, of_tables in found.items():
        busy[name] = float(np.stack(of_tables)[..., -1].mean())
        runs = np.stack(of_tables)[:, :, np.array(AFTER) - 1]  # tables, seeds, AFTER
        # Tables are given, not drawn: only seeds make noise.
        error = np.sqrt((runs.var(1, ddof=1) / runs.shape[1]).sum(0)) / len(runs)
        mean = runs.mean((0, 1))
        means[name] = dict(zip(AFTER, mean.tolist(), strict=True))
        cells = [f"   {m:.3f} ±{e:.3f}" for m, e in zip(mean, error, strict=True)]
        print(
            f"{name:20}"
            + "".join(f"{cell:>15}" for cell in cells)
            + f"{busy[name]:7.2f}{runs[..., 0].size:>11}"
        )
    random, alone, together, deterministic = means.values()
    figures = {
        "regret_25": alone[25],
        "regret_100": alone[100],
        "regret_100_workers_10": together[100],
        "random_regret_100": random[100],
        "regret_100_deterministic": deterministic[100],
        "busy_share_deterministic": busy["  deterministic"],
        "busy_share_workers_10": busy[f"{DEFAULT.name}, {WORKERS} workers"],
        "searches": found[DEFAULT.name][0].shape[0] * len(found["random"]),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
