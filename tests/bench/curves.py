"""Recorded learning curves that searches with early stopping can be replayed on."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from search.config import SchedulerConfig
from search.space import Params
from tests.bench.grid import Grid
from tests.bench.simulation import Replay, Step

OWN = Path(__file__).with_name("own_curves.json")
UNIT = 16  # training examples of LCDB that are an epoch here: its smallest size
# A data set of LCDB takes part with as many epochs as so many of its 20 learners have with so many
# seeds each, if that is a full length that leaves stopping something to save.
MIN_LEARNERS, MIN_SEEDS, MIN_EPOCHS = 15, 5, 81
_TRIAL = ["learner", "outer_seed", "inner_seed"]


class Curves:
    """The learning curves of one task, of each point of a grid with one or more seeds.

    Attributes:
        name: Of the task.
        space: What a search sees.
        epochs: Where the curves are known; the last one is the full length.
        trained: What a trial has cost when it gets there, in epochs.
    """

    def __init__(
        self,
        name: str,
        choices: Mapping[str, Sequence[Any]],
        epochs: Sequence[int],
        trained: Sequence[float],
        curves: Mapping[tuple[int, ...], np.ndarray],  # place in the grid -> (seeds, epochs)
    ) -> None:
        self.name, self.epochs, self.trained = name, list(epochs), list(trained)
        self._grid, self._curves = Grid(choices), dict(curves)
        self.space = self._grid.space

    def replay(self, seed: int) -> Replay:
        """Trials whose number and `seed` say which of a point's recorded seeds they are."""

        def steps(params: Params, number: int) -> list[Step]:
            curves = self._curves[self._grid.places(params)]
            values = curves[np.random.default_rng((seed, number)).integers(len(curves))].tolist()
            waits = np.diff([0, *self.trained]).tolist()
            found = []
            for epoch, value, wait in zip(self.epochs, values, waits, strict=True):
                found.append(Step(epoch, None if np.isnan(value) else value, wait))
                if np.isnan(value):  # the training failed here
                    break
            return found

        return steps

    def mean(self, params: Params) -> float:
        """Mean over seeds of the objective at full length."""
        return float(np.nanmean(self._curves[self._grid.places(params)][:, -1]))

    def best_of_random(self, n_trials: int) -> tuple[float, float]:
        """What random search expects of its best of so many full trials: its value, its mean.

        Exact: each point is equally likely, and so is each of its seeds. Of equal bests a search
        keeps the first, so that each is kept as often as it is drawn.
        """
        rows = []
        for curves in self._curves.values():
            last = curves[:, -1]
            found = last[~np.isnan(last)]
            rows += [(value, found.mean(), 1 / len(last)) for value in found]
        drawn, means, shares = np.array(rows).T
        values, place = np.unique(drawn, return_inverse=True)
        weights = np.bincount(place, shares)
        means = np.bincount(place, shares * means) / weights
        failed = 1 - weights.sum() / len(self._curves)
        below = np.cumsum([failed, *(weights / len(self._curves))])
        chances = np.diff(below**n_trials) / (1 - failed**n_trials)
        return float(chances @ values), float(chances @ means)


def own_curves() -> Iterator[Curves]:
    """Of our own trials on the embedded data set; see `tests.bench.record_curves`."""
    recorded = json.loads(OWN.read_text())
    choices, epochs = recorded["grid"], recorded["epochs"]
    points = list(itertools.product(*(range(len(values)) for values in choices.values())))
    for machine_type, rows in recorded["curves"].items():
        padded = [np.array([row + [np.nan] * (len(epochs) - len(row))]) for row in rows]
        curves = dict(zip(points, padded, strict=True))
        yield Curves(machine_type, choices, epochs, epochs, curves)


def lcdb() -> pd.DataFrame:
    """LCDB 0.1.0 (Mohr et al., ECML PKDD 2022; MIT): validation AUC after training on n examples.

    Read from the installed package without importing it.
    """
    path = Path(str(distribution("lcdb").locate_file("lcdb/database-auc.csv")))
    return pd.read_csv(path, usecols=["openmlid", *_TRIAL, "size_train", "score_valid"])


def lcdb_curves(table: pd.DataFrame) -> Iterator[Curves]:
    """A search for the best learner of each data set that the rule above admits.

    A trial is a learner with one of its seeds; an epoch is `UNIT` training examples, and what is
    known are the epochs at which the default scheduler asks. There stands the largest recorded size
    that is not above, and not below by more than LCDB's own factor of sqrt(2); it costs what it is.
    """
    for name, rows in table.dropna(subset="score_valid").groupby("openmlid"):
        curves = rows.pivot(index=_TRIAL, columns="size_train", values="score_valid")
        recorded = np.array(sorted(curves.columns))
        epochs: list[int] = []
        sizes: list[int] = []
        admitted: dict[str, np.ndarray] = {}
        for epoch in _rungs():
            fitting = recorded[(recorded <= UNIT * epoch) & (recorded > UNIT * epoch / 2**0.5)]
            if not len(fitting):
                break
            whole = curves[[*sizes, fitting[-1]]].dropna()
            learners = {str(learner): rows.to_numpy() for learner, rows in whole.groupby("learner")}
            learners = {key: rows for key, rows in learners.items() if len(rows) >= MIN_SEEDS}
            if len(learners) < MIN_LEARNERS:
                break
            epochs, sizes, admitted = [*epochs, epoch], [*sizes, int(fitting[-1])], learners
        if epochs and epochs[-1] >= MIN_EPOCHS:
            points = {(place,): rows for place, rows in enumerate(admitted.values())}
            trained = [size / UNIT for size in sizes]
            yield Curves(str(name), {"learner": list(admitted)}, epochs, trained, points)


def _rungs() -> Iterator[int]:
    """Where the default scheduler asks, in a training without end."""
    scheduler = SchedulerConfig()
    for rung in itertools.count():
        yield round(scheduler.reduction_factor**rung)
