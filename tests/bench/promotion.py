"""How often promotion is wrong, and how often it finds what is better, in simulated studies.

    python -m tests.bench.promotion [--quick]

A study draws the test clips of a few machine ids. Champion and candidate score the same clips: what
makes a clip hard is common to both (the correlation), the rest is the noise of their seeds. The
rule of the space file's defaults then decides as it does after a search.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import norm

from mimimi_core.comparison import compare_aucs
from search.champions import judge
from search.config import PromotionConfig

Shape = tuple[int, int, int]  # normals and anomalies of each id, ids

SETTINGS = PromotionConfig()
SHAPES: tuple[Shape, ...] = (
    (2, 2, 1),
    (2, 2, 4),
    (5, 5, 4),
    (12, 12, 1),
    (12, 12, 4),
    (50, 50, 1),
    (50, 50, 4),
    (100, 400, 1),
    (100, 400, 4),
)
LARGE: tuple[Shape, ...] = ((12, 12, 4), (50, 50, 4), (100, 400, 4))
AUCS = (0.6, 0.8, 0.95, 0.99)  # of the champion
CORRELATIONS = (0.5, 0.95)
GAIN = 0.05  # behind the figure `power`, with 50 normals and anomalies of each of 4 ids
SEED_SPREAD = 0.02  # standard deviation of an id's AUC between trainings


@dataclass(frozen=True)
class Result:
    """Of the simulated studies of one row."""

    promoted: np.ndarray  # bool (n,)
    is_worse: np.ndarray  # bool (n,) the candidate's true mean AUC is below the champion's

    @property
    def rate(self) -> float:
        return float(self.promoted.mean())


def simulate(
    rng: np.random.Generator,
    n: int,
    shape: Shape,
    auc: float,
    correlation: float,
    gain: float = 0.0,
    cheaper: float = 1.0,
    seed_spread: float = 0.0,
) -> Result:
    """Simulate `n` studies whose candidate has the champion's AUC plus `gain`."""
    n_normal, n_anomaly, n_ids = shape
    labels = np.tile(np.repeat([0, 1], [n_normal, n_anomaly]), n_ids)
    ids = np.repeat(np.arange(n_ids), n_normal + n_anomaly)
    promoted, is_worse = np.empty((2, n), bool)
    for i in range(n):
        moved = seed_spread * rng.standard_normal((2, n_ids))
        true = np.clip(np.array([[auc + gain], [auc]]) + moved, 0.01, 0.999)
        clip = np.sqrt(correlation) * rng.standard_normal(len(labels))
        own = np.sqrt(1 - correlation) * rng.standard_normal((2, len(labels)))
        candidate, champion = np.sqrt(2) * norm.ppf(true[:, ids]) * labels + clip + own
        found = compare_aucs(candidate, champion, labels, ids, SETTINGS.margin)
        assert found is not None
        promoted[i], _ = judge(found, cheaper, SETTINGS)
        is_worse[i] = true[0].mean() < true[1].mean()
    return Result(promoted, is_worse)


def false_rates(n: int, gain: float, cheaper: float) -> Iterator[list[float]]:
    """Rates of each shape, one for every combination of AUC and correlation."""
    for row, shape in enumerate(SHAPES):
        yield [
            simulate(np.random.default_rng([row, column]), n, shape, *cell, gain, cheaper).rate
            for column, cell in enumerate(product(AUCS, CORRELATIONS))
        ]


def power(n: int, shape: Shape, gain: float, cheaper: float = 1.0) -> list[float]:
    """Rates of promotion, one for each correlation; the champion has AUC 0.9."""
    return [
        simulate(np.random.default_rng(7), n, shape, 0.9, correlation, gain, cheaper).rate
        for correlation in CORRELATIONS
    ]


def main() -> None:
    """Print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.promotion")
    parser.add_argument("--quick", action="store_true")
    n = 25 if parser.parse_args().quick else 250  # studies of each AUC and correlation
    n_power = 8 * n
    level, margin = SETTINGS.level, SETTINGS.margin

    print(f"promoted in error, at most {level:g} is allowed; {8 * n} studies a row:")
    print(f"AUC {AUCS}, correlation {CORRELATIONS}; mean over those, and the worst of them")
    print(f"{'clips':>14}  {'equal, same cost':>18}  {f'{margin:g} worse, cheaper':>20}")
    rates = []
    nulls = (false_rates(n, 0.0, 1.0), false_rates(n, -margin, SETTINGS.cheaper))
    for shape, *of_shape in zip(SHAPES, *nulls, strict=True):
        cells = [f"{np.mean(found):8.3f} {max(found):8.3f}" for found in of_shape]
        print(f"{_shown(shape):>14}  {cells[0]:>18}  {cells[1]:>20}", flush=True)
        rates += of_shape

    print(f"\npromoted rightly, champion's AUC 0.9, correlation {CORRELATIONS}; {n_power} studies:")
    for shape in LARGE:
        for gain in (0.02, GAIN):
            print(_row(shape, f"better by {gain:g}", power(n_power, shape, gain)), flush=True)
        found = power(n_power, shape, 0.0, SETTINGS.cheaper)
        print(_row(shape, "equal, cheaper", found), flush=True)

    print(f"\nequal but for seeds that move each id's AUC by {SEED_SPREAD:g}; {n_power} studies:")
    for shape in LARGE:
        moved = simulate(
            np.random.default_rng(8), n_power, shape, 0.9, 0.9, seed_spread=SEED_SPREAD
        )
        worse = float((moved.promoted & moved.is_worse).mean())
        print(
            f"{_shown(shape):>14}  promoted {moved.rate:.3f}, truly worse {worse:.3f}", flush=True
        )

    figures = {
        "false_rate": float(np.mean(rates)),
        "worst_row": float(np.max(np.mean(rates, axis=1))),
        "level": level,
        "power": float(np.mean(power(n_power, (50, 50, 4), GAIN))),
        "gain": GAIN,
        "studies": 8 * n * len(rates),
    }
    print(json.dumps(figures))


def _shown(shape: Shape) -> str:
    return f"{shape[2]} x ({shape[0]} + {shape[1]})"


def _row(shape: Shape, what: str, found: list[float]) -> str:
    return f"{_shown(shape):>14}  {what:<15}" + "".join(f"{rate:8.3f}" for rate in found)


if __name__ == "__main__":
    main()
