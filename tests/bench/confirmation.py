"""How far a search's own best value flatters its configuration, and how far fresh seeds still do.

    python -m tests.bench.confirmation [--quick]

On the tables with enough stored seeds, each search deals every configuration's seeds anew: one is
what the search sees, some are the fresh seeds of the confirmation, the rest, at least one, tells
the truth. No seed does two of these, so the mean errors have no bias of their own.
"""

import argparse
import json

import numpy as np

from search.config import ConfirmationConfig, SamplerConfig
from search.confirmation import finalists, ranked
from search.samplers import derive_seed
from search.space import Params
from tests.bench.simulation import Step, simulate
from tests.bench.tables import Table, tables

N_TRIALS = 100
DEFAULT = ConfirmationConfig()
SHAPES = dict.fromkeys([(DEFAULT.top, DEFAULT.seeds), (1, 2), (3, 1), (3, 2), (5, 2)])
N_SEEDS = 2 + max(n_seeds for _, n_seeds in SHAPES)  # that a table must have stored


def errors(table: Table, seed: int) -> dict[tuple[int, int], tuple[float, float]]:
    """Errors of one search's estimates, as shares of the way from the median to the best.

    Returns:
        For each of `SHAPES` (finalists, seeds): by how much the best trial's value and the
        confirmed mean exceed what their configurations reach on the seeds that are left.
    """
    rows: list[int] = []

    def replay(params: Params, number: int) -> list[Step]:
        rows.append(table.row(params))
        return [Step(1, float(table.shuffled(rows[-1], seed)[0]), 1.0)]

    trials, _ = simulate(replay, table.space, sampler=SamplerConfig(), n_trials=N_TRIALS, seed=seed)
    found = {}
    for top, n_seeds in SHAPES:
        candidates = finalists(trials, top)
        hands = {number: table.shuffled(rows[number], seed) for number in candidates}
        fresh = {number: hand[1 : 1 + n_seeds].tolist() for number, hand in hands.items()}
        truth = {number: hand[1 + n_seeds :].mean() for number, hand in hands.items()}
        best, winner = candidates[0], ranked(fresh)[0]
        unconfirmed = hands[best][0] - truth[best]
        confirmed = np.mean(fresh[winner]) - truth[winner]
        found[top, n_seeds] = (unconfirmed / table.scale, confirmed / table.scale)
    return found


def main() -> None:
    """Print a row per way to confirm, then the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.confirmation")
    parser.add_argument("--quick", action="store_true", help="2 tables and 4 seeds")
    quick = parser.parse_args().quick
    found: dict[tuple[int, int], list[list[tuple[float, float]]]] = {shape: [] for shape in SHAPES}
    for table in tables(quick):
        if table.n_seeds < N_SEEDS:
            continue
        runs = [errors(table, derive_seed(table.name, i)) for i in range(4 if quick else 16)]
        for shape in SHAPES:
            found[shape].append([run[shape] for run in runs])

    n_tables, n_searches = np.shape(found[DEFAULT.top, DEFAULT.seeds])[:2]
    print(f"mean overstatement and its standard error; {n_tables} tables, {n_searches} searches of")
    print(f"{N_TRIALS} trials each; 1 is the way from the median configuration to the best")
    print(f"{'finalists x seeds':20}{'best trial':>16}{'confirmed':>16}")
    figures: dict[str, float] = {}
    for shape, of_shape in found.items():
        runs = np.array(of_shape)  # tables, searches, (unconfirmed, confirmed)
        mean = runs.mean((0, 1))
        error = np.sqrt((runs.var(1, ddof=1) / n_searches).sum(0)) / n_tables
        cells = [f"{m:+.3f} ±{e:.3f}" for m, e in zip(mean, error, strict=True)]
        print(f"{'{} x {}'.format(*shape):20}" + "".join(f"{cell:>16}" for cell in cells))
        if shape == (DEFAULT.top, DEFAULT.seeds):
            figures = {"error_unconfirmed": abs(mean[0]), "error_confirmed": abs(mean[1])}
    print(json.dumps(figures | {"searches": n_tables * n_searches}))


if __name__ == "__main__":
    main()
