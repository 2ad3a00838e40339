"""What the driver makes of 640 trials of one second on 16 slots, against what Ray itself offers.

    python -m tests.bench.driver [--quick]

Ours is a search as `search.run` runs it, with searcher, scheduler, journal and MLflow (sqlite), but
for workers that sleep; the sampler is TPE, which the default one is from 100 trials on. Stock is
Tune with OptunaSearch, ASHA and Ray's MLflow callback on the same parameters, slots and workers,
also reused, and also without Tune's default loggers. It gets slower from trial to trial, so the
fewer trials it is given here favour it.

Each arm is a process with a cluster of its own, whose 16 CPUs are logical. Rates and processor time
count from the end of the first 32 trials, when all workers have started; memory is what trials
after the first quarter add to the driver's resident set, by a straight line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from search.launch import cluster
from search.space import Space
from search.tracking import check
from tests.bench.whole_search import RESOURCES, logical_slots, run_search
from tests.doubles import analytic_trainable, space_file

SLOTS, WARM = 16, 32
SAMPLER = "tpe"


class Clock:
    """Notes in a file, for Tune copies its callbacks, when trials end and what the driver takes.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """An observer of a search."""
        if trial.state.is_finished():
            self.note()

    def note(self) -> None:
        """One more trial has ended."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with self._path.open("a") as file:
            memory = pages * resource.getpagesize()
            file.write(f"{time.perf_counter()} {time.process_time()} {memory}\n")

    def figures(self) -> dict[str, float]:
        """Trials per second, kB per trial, processor milliseconds per trial."""
        seconds, used, memory = np.loadtxt(self._path).T
        quarter = len(seconds) // 4
        kept = np.polyfit(np.arange(quarter, len(seconds)), memory[quarter:], 1)[0]
        n_counted = len(seconds) - WARM
        return {
            "trials": len(seconds),
            "trials_per_s": n_counted / (seconds[-1] - seconds[WARM - 1]),
            "kb_per_trial": kept / 1000,
            "cpu_ms_per_trial": 1000 * (used[-1] - used[WARM - 1]) / n_counted,
        }


def ours(folder: Path, n_trials: int) -> dict[str, float]:
    """A search as it is; figures of `Clock`, and the share of time spent on tracking."""
    space = space_file(trials=n_trials, epochs=1, sampler={"name": SAMPLER})
    clock = Clock(folder / "ends")
    packs = {"fan": Path("no pack")}
    share = run_search(folder, space, packs, analytic_trainable(step_s=1.0), clock)
    return clock.figures() | {"tracking_wait_share": share}


def stock(folder: Path, n_trials: int) -> dict[str, float]:
    """Tune with OptunaSearch and Ray's MLflow callback."""
    uri, clock = f"sqlite:///{folder / 'mlflow.db'}", Clock(folder / "ends")
    check(uri)

    class Sleeper(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            pass

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            time.sleep(1.0)
            auc = 0.95 - abs(self.config["train.lr"] - 0.003)
            return {"train_loss": 1.0, "val_auc": auc, "val_auc/id_00": auc, "done": True}

    class Ends(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
            clock.note()

    space = Space(space_file().parameters)
    with cluster(None):
        tune.Tuner(
            tune.with_resources(Sleeper, RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(space.suggest, metric="val_auc", mode="max"),
                scheduler=ASHAScheduler(metric="val_auc", mode="max"),
                num_samples=n_trials,
                max_concurrent_trials=SLOTS,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=str(folder),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[MLflowLoggerCallback(tracking_uri=uri, experiment_name="s"), Ends()],
                verbose=0,
            ),
        ).fit()
    return clock.figures()


ARMS: dict[str, Callable[[Path, int], dict[str, float]]] = {"ours": ours, "stock": stock}


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.driver")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)  # of a child process
    parser.add_argument("--trials", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(ARMS[args.arm](Path(scratch), args.trials)))
        return
    sizes = {"ours": 128, "stock": 64} if args.quick else {"ours": 640, "stock": 160}
    print(f"{SLOTS} logical slots on {os.cpu_count()} cores, trials of 1 s, sampler {SAMPLER}")
    print(f"{'':8}{'trials':>8}{'trials/s':>10}{'kB each':>10}{'CPU ms each':>13}{'load':>7}")
    found = {}
    for arm, n_trials in sizes.items():
        found[arm] = figures = _run(arm, n_trials)
        cells = f"{figures['trials']:8.0f}{figures['trials_per_s']:10.2f}"
        cells += f"{figures['kb_per_trial']:10.0f}{figures['cpu_ms_per_trial']:13.0f}"
        print(f"{arm:8}{cells}{os.getloadavg()[0]:7.1f}", flush=True)
    share = found["ours"]["tracking_wait_share"]
    print(f"the control loop is with the tracker for {100 * share:.2f} % of the time")
    print(
        json.dumps(
            {
                **found["ours"],
                **{f"stock_{name}": value for name, value in found["stock"].items()},
                "ratio_to_stock": found["ours"]["trials_per_s"] / found["stock"]["trials_per_s"],
                "sampler": SAMPLER,
            }
        )
    )


def _run(arm: str, n_trials: int) -> dict[str, float]:
    """An arm's figures, from a process of its own."""
    command = [sys.executable, "-m", "tests.bench.driver", "--arm", arm, "--trials", str(n_trials)]
    done = subprocess.run(
        command, env=logical_slots(SLOTS), stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
