"""How long the driver takes for one trial's bookkeeping as a study grows, Ray and MLflow aside.

    python -m tests.bench.sampler [--quick]

A study on spaces/complex.yaml in a journal of its own holds finished trials, six in ten of them
stopped early. Timed are one suggestion with the record of its trial, one epoch and the end of a
trial. The Gaussian process suggests up to 100 trials, TPE after that.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial

from search.config import SamplerConfig, load_space
from search.samplers import LARGE
from search.space import Space
from search.storages import open_storage
from search.studies import EPOCH, TypeStudy

SPACE = Path(__file__).parents[2] / "spaces" / "complex.yaml"
SIZES = (("gp", 25), ("gp", LARGE - 1), ("tpe", 100), ("tpe", 1000), ("tpe", 5000))
EPOCHS, RUNG, PRUNED_SHARE = 30, 6, 0.6


def fill(storage: BaseStorage, study_name: str, space: Space, n_trials: int) -> None:
    """Store a study of trials with random parameters and rising curves."""
    rng = np.random.default_rng(0)
    sampler = optuna.samplers.RandomSampler(seed=0)
    drawn = optuna.create_study(direction="maximize", sampler=sampler)
    stored = optuna.create_study(storage=storage, study_name=study_name, direction="maximize")
    with mock.patch("os.fsync"):  # each would wait for the disk
        for _ in range(n_trials):
            trial = drawn.ask()
            params = space.suggest(trial)
            is_pruned = rng.random() < PRUNED_SHARE
            curve = 0.5 + rng.uniform(0, 0.5) * (1 - 0.8 ** np.arange(1, EPOCHS + 1))
            curve = curve[: RUNG if is_pruned else EPOCHS]
            found = drawn.get_trials(deepcopy=False)[-1]
            told = {f"{EPOCH}{epoch}": {"val_auc": v, "seconds": 1.0} for epoch, v in _told(curve)}
            fixed = {name: v for name, v in params.items() if name not in found.params}
            template = create_trial(
                state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
                value=None if is_pruned else float(curve[-1]),
                params=found.params,
                distributions=found.distributions,
                intermediate_values=dict(_told(curve)),
                user_attrs={"fixed": fixed, **told},
            )
            storage.create_new_trial(stored._study_id, template_trial=template)


def _told(curve: np.ndarray) -> Iterator[tuple[int, float]]:
    yield from enumerate(curve.tolist(), 1)


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Add the milliseconds that the block takes."""
    started = time.perf_counter()
    yield
    into.append(1000 * (time.perf_counter() - started))


def measure(sampler: str, n_trials: int, repetitions: int) -> dict[str, float]:
    """Median milliseconds of each step, after `n_trials` finished ones."""
    space = Space(load_space(SPACE).parameters)
    suggestion: list[float] = []
    epoch: list[float] = []
    end: list[float] = []
    with tempfile.TemporaryDirectory() as folder, open_storage(Path(folder)) as storage:
        fill(storage, "bench/fan", space, n_trials)
        study = TypeStudy(
            storage,
            name="bench",
            machine_type="fan",
            space=space,
            sampler=SamplerConfig(name=sampler),
            seed=0,
            identity={},
        )
        study.ask()  # copies all trials, once per search
        for _ in range(repetitions):
            with timed(suggestion):
                trial = study.ask()
            assert trial is not None
            with timed(epoch):
                study.record_epoch(trial.number, 1, {"val_auc": 0.7, "seconds": 1.0}, 0.7)
            with timed(end):
                study.finish(trial.number, TrialState.COMPLETE, 0.7)
    found = {"suggestion": suggestion, "epoch": epoch, "end": end}
    return {f"{name}_ms": statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sampler")
    parser.add_argument("--quick", action="store_true")
    is_quick = parser.parse_args().quick
    print(f"milliseconds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'sampler':<8}{'trials':>8}{'suggestion':>12}{'epoch':>8}{'end':>8}")
    figures = {}
    for sampler, n_trials in SIZES[: 4 if is_quick else None]:
        found = measure(sampler, n_trials, repetitions=3 if is_quick else 11)
        cells = f"{found['suggestion_ms']:12.1f}{found['epoch_ms']:8.1f}{found['end_ms']:8.1f}"
        print(f"{sampler:<8}{n_trials:8}{cells}", flush=True)
        figures |= {f"{sampler}_{n_trials}_{name}": value for name, value in found.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
