"""What a search costs around its trainings: from a free slot to the next trial's first step.

    python -m tests.bench.trial_overhead [--quick]

24 trials of spaces/complex.yaml, at 6 epochs, on as many slots as there are cores, with its sampler
and scheduler, journal, MLflow and progress; recordings are 140 synthetic clips of 10 s. Warm is
from the last epoch of a trial to the first training step of the next in the same process; cold,
from the first suggestion to that step of each process's first trial, Ray being up, which includes
that process's imports. Work is an epoch with its scores and checkpoint, or opening a trial; its
share of the slots' time counts until the last trial begins, from the first.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from search.config import load_space
from search.trainable import TrialRunner, open_training
from tests.bench.stopwatch import machine, record_clips
from tests.bench.whole_search import run_search

SPACE = Path(__file__).parents[2] / "spaces" / "complex.yaml"

Step = dict[str, Any]


def noted_runner(folder: Path) -> type[TrialRunner]:
    """A `TrialRunner` that notes each step: process, trial, seconds of the machine's clock."""

    class NotedRunner(TrialRunner):
        def step(self) -> dict[str, Any]:
            started, is_first = time.monotonic(), self._training is None
            if is_first:
                self._training, _ = open_training(self.config)
            opened = time.monotonic()
            result = super().step()
            step = {
                "pid": os.getpid(),
                "number": self.config["number"],
                "is_first": is_first,
                "started": started,
                "opened": opened,
                "ended": time.monotonic(),
            }
            with (folder / f"{os.getpid()}.jsonl").open("a") as file:
                file.write(json.dumps(step) + "\n")
            return result

    return NotedRunner


class Beginning:
    """Notes when the first trial begins."""

    seconds = 0.0

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """See Observer."""
        self.seconds = self.seconds or time.monotonic()


def figures(steps: list[Step], started: float, n_slots: int) -> dict[str, Any]:
    """Of all steps, in the order of each process; `started` is when the first trial began."""
    warm, opening, cold = [], [], []
    by_process: dict[int, list[Step]] = {}
    for step in steps:
        by_process.setdefault(step["pid"], []).append(step)
    for own in by_process.values():
        cold.append(own[0]["opened"] - started)
        for last, step in zip(own, own[1:], strict=False):
            if step["is_first"]:
                warm.append(step["opened"] - last["ended"])
                opening.append(step["opened"] - step["started"])
    begin = min(step["started"] for step in steps)
    last_wave = max(step["started"] for step in steps if step["is_first"])
    work = sum(
        min(step["ended"], last_wave) - step["started"]
        for step in steps
        if step["started"] < last_wave
    )
    return {
        "warm_s": statistics.median(warm),
        "warm_most_s": max(warm),
        "opening_s": statistics.median(opening),
        "cold_s": statistics.median(cold),
        "busy_share": work / (n_slots * (last_wave - begin)),
        "trials": len({step["number"] for step in steps}),
        "epochs": len(steps),
        "epoch_s": statistics.median(step["ended"] - step["opened"] for step in steps),
        "processes": len(by_process),
    }


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trial_overhead")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    space = load_space(SPACE)
    study = {"trials": 6 if args.quick else 24, "epochs": 3 if args.quick else 6}
    settings = space.model_dump() | {"study": study}
    n_slots = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        home, notes = Path(scratch), Path(scratch, "notes")
        notes.mkdir()
        pack = record_clips(home / "data", n_train=128, n_test=4)
        beginning, checked = Beginning(), type(space).model_validate(settings)
        run_search(home, checked, {"fan": pack.path}, noted_runner(notes), beginning)
        steps = [json.loads(x) for path in notes.iterdir() for x in path.read_text().splitlines()]
    found = figures(steps, beginning.seconds, n_slots)
    for name, value in found.items():
        print(f"{name:14}{value:8.3f}")
    print(json.dumps(found | machine()))


if __name__ == "__main__":
    main()
