"""What attention, complex input, each augmentation and bf16 change: one change each from one base.

    python -m tests.bench.effects [--quick | --wide] [--results FILE]

Every arm is trained on the four machine types of the embedded data set, with the same seeds: the
effect of a change is its AUC minus the base's with the same seed, which shares clips, order and,
where the network is the same, initial weights. Nothing is selected, so the last epoch counts and
val and test are scored together. `FILE` gets a line per training; with the same file an
interrupted run continues, and Ctrl-C prints the tables of what is there. Half an hour of one core.
`--wide` compares bf16 alone, at the paper's 45 channels, where it saves most: as long again.
"""

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from scipy import stats

from mimimi_core.clips import find_clips
from mimimi_core.config import TrialConfig
from mimimi_core.machines import FAULTS
from mimimi_core.pack import Pack, open_pack, pack_clips
from mimimi_core.precision import pick_device, use_bf16
from mimimi_core.synth import write_synthetic
from mimimi_core.training import Training

Params = dict[str, Any]
Aucs = dict[tuple[str, str], dict[int, float]]  # (arm, machine type or MEAN) -> seed -> dev_auc

BASE, BF16, MEAN = "base", "bf16", "mean"
ARMS: dict[str, Params] = {
    BASE: {
        "frontend.kind": "complex",
        "network.attention": True,
        "train.precision": "fp32",
        "train.lr": 4e-3,
        "train.batch_size": 16,
    },
    "magnitude": {"frontend.kind": "magnitude"},
    "no attention": {"network.attention": False},
    "mixing": {"augment.mixing": True},
    "mask": {"augment.mask": True},
    "noise": {"augment.noise": True},
    "shift": {"augment.shift": True},
    BF16: {"train.precision": "bf16"},
}
SEEDS, SEEDS_OF_ALL = 5, 3  # the base and bf16 get theirs before the other arms get a fourth
CONFIDENCE = 0.95
BUDGET = {"train.epochs": 10, "network.channels": 8}
# At 45 channels the base's rate would be forty times the paper's; this is ten times.
WIDE = {"train.epochs": 10, "network.channels": 45, "train.lr": 1e-3}
WIDE_ARMS, WIDE_TYPES = (BASE, BF16), ["fan", "valve"]  # of the types the easiest, and a hard one
QUICK = {"train.epochs": 1, "network.channels": 4, "frontend.n_fft": 512, "frontend.n_frames": 32}


@dataclass(frozen=True, kw_only=True)
class Effect:
    """An arm's AUC minus the base's, over the seeds that both have."""

    n_seeds: int
    mean: float | None = None
    ci: tuple[float, float] | None = None  # None for a single seed


class _UnwatchedTraining(Training):
    """Never scores the validation clips between epochs."""

    def _val_metrics(self) -> dict[str, float]:
        return {}


def train(arm: str, pack: Pack, seed: int, budget: Params) -> dict[str, Any]:
    """One training's line of the results."""
    params = ARMS[BASE] | ARMS[arm] | budget | {"train.seed": seed}
    training, started = _UnwatchedTraining(TrialConfig.from_params(params), pack), process_time()
    while not training.is_done:
        metrics = training.run_epoch()
    return {
        "arm": arm,
        "machine_type": pack.machine_type,
        "seed": seed,
        "dev_auc": training.auc_report("val", "test").auc,
        "id_swap_auc": metrics["id_swap_auc"],
        "train_loss": metrics["train_loss"],
        "seconds": process_time() - started,
        "budget": budget,
    }


def order_jobs(
    machine_types: list[str], n_seeds: int, arms: Iterable[str] = ARMS
) -> list[tuple[int, str, str]]:
    """(seed, arm, machine type) of every training, the most wanted first."""
    jobs = itertools.product(range(n_seeds), arms, machine_types)
    return sorted(
        jobs, key=lambda job: (job[0] >= SEEDS_OF_ALL and job[1] not in (BASE, BF16), job[0])
    )


def read_rows(path: Path, budget: Params) -> list[dict[str, Any]]:
    """Results of earlier runs with this budget."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for number, row in enumerate(rows, 1):
        if row["budget"] != budget:
            raise SystemExit(
                f"{path}, line {number}: budget must be {budget}, got {row['budget']}: name "
                "another file with --results"
            )
    return rows


def collect(rows: list[dict[str, Any]]) -> Aucs:
    """AUCs by arm and machine type, and the mean over types of seeds that have them all."""
    aucs: Aucs = {}
    for row in rows:
        aucs.setdefault((row["arm"], row["machine_type"]), {})[row["seed"]] = row["dev_auc"]
    types = sorted({row["machine_type"] for row in rows})
    for arm in ARMS:
        of_types = [aucs.get((arm, machine_type), {}) for machine_type in types]
        seeds = set.intersection(*map(set, of_types)) if of_types else set()
        aucs[arm, MEAN] = {s: float(np.mean([of_type[s] for of_type in of_types])) for s in seeds}
    return aucs


def effect_of(arm: dict[int, float], base: dict[int, float]) -> Effect:
    """Mean over common seeds of the paired difference, with Student's interval over them."""
    differences = np.array([arm[seed] - base[seed] for seed in sorted(arm.keys() & base.keys())])
    n = len(differences)
    if not n:
        return Effect(n_seeds=0)
    mean = float(differences.mean())
    if n == 1:
        return Effect(n_seeds=1, mean=mean)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return Effect(n_seeds=n, mean=mean, ci=(float(mean - half), float(mean + half)))


def spread(aucs: dict[int, float]) -> float | None:
    """Standard deviation over seeds."""
    return float(np.std(list(aucs.values()), ddof=1)) if len(aucs) > 1 else None


def _print_row(*cells: str) -> None:
    print(f"{cells[0]:14}{cells[1]:>5}{''.join(f'{cell:>25}' for cell in cells[2:])}")


def _cell(effect: Effect) -> str:
    if effect.mean is None:
        return "none"
    low_high = "[{:+.3f}, {:+.3f}]".format(*effect.ci) if effect.ci else ""
    return f"{effect.mean:+.3f} {low_high}"


def print_effects(aucs: Aucs) -> dict[str, Any]:
    """Print the base's AUCs, then a row per change; returns both."""
    columns = [MEAN, *sorted({column for _, column in aucs} - {MEAN})]
    print("dev_auc of the base, ± standard deviation over seeds; then what each change adds to it,")
    print(f"with Student's {CONFIDENCE:.0%} interval over seeds (not over clips or data sets)")
    _print_row("", "seeds", *columns)
    base = {column: aucs.get((BASE, column), {}) for column in columns}
    said: dict[str, Any] = {
        BASE: {
            c: {"dev_auc": float(np.mean(list(x.values()))), "seed_sd": spread(x)}
            for c, x in base.items()
            if x
        }
    }
    cells = [f"{x['dev_auc']:.3f} ± {x['seed_sd'] or np.nan:.3f}" for x in said[BASE].values()]
    _print_row(BASE, str(len(base[MEAN])), *cells)
    for arm in [arm for arm in ARMS if arm != BASE]:
        found = {c: effect_of(aucs.get((arm, c), {}), base[c]) for c in columns}
        if not any(effect.n_seeds for effect in found.values()):
            continue
        _print_row(arm, str(found[MEAN].n_seeds), *map(_cell, found.values()))
        said[arm] = {
            c: {"effect": x.mean, "ci": x.ci, "seeds": x.n_seeds, "seed_sd": spread(aucs[arm, c])}
            for c, x in found.items()
            if x.mean is not None
        }
    return said


def print_bf16(effects: dict[str, Any]) -> dict[str, Any]:
    """Print whether bf16 trains as well as fp32, as far as seeds can tell; returns it."""
    said: dict[str, Any] = {"auto_is_bf16": use_bf16("auto", pick_device()), "within_spread": {}}
    for column, x in effects.get(BF16, {}).items():  # none where it was interrupted before
        seed_sd = effects[BASE][column]["seed_sd"]
        if x["ci"] is None or seed_sd is None:
            continue
        low, high = x["ci"]
        is_within = abs(x["effect"]) <= seed_sd
        said["within_spread"][column] = is_within
        print(
            f"bf16 - fp32, {column}: {x['effect']:+.3f} [{low:+.3f}, {high:+.3f}] over "
            f"{x['seeds']} seeds, {'within' if is_within else 'BEYOND'} the standard deviation of "
            f"fp32's, {seed_sd:.3f}; {'no ' if low <= 0 <= high else ''}difference shown"
        )
    print(f"train.precision auto is {'bf16' if said['auto_is_bf16'] else 'fp32'} on this machine")
    return said


def train_missing(
    jobs: list[tuple[int, str, str]], rows: list[dict[str, Any]], budget: Params, results: Path
) -> None:
    """Train what `rows` lack of `jobs`; adds each to them and to the file."""
    done = {(row["seed"], row["arm"], row["machine_type"]) for row in rows}
    missing = [job for job in jobs if job not in done]
    types = sorted({machine_type for _, _, machine_type in missing})
    with tempfile.TemporaryDirectory() as scratch:
        manifest = find_clips(write_synthetic(Path(scratch, "embedded"), types)) if types else {}
        packs = {name: open_pack(pack_clips(x, Path(scratch))) for name, x in manifest.items()}
        for seed, arm, machine_type in missing:
            rows.append(train(arm, packs[machine_type], seed, budget))
            with results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")


def main() -> None:
    """Train what is missing, print the tables, then the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.effects")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="tiny, 2 seeds, 2 machine types")
    size.add_argument("--wide", action="store_true", help="bf16 alone at the paper's width")
    parser.add_argument(
        "--results", type=Path, default=Path(os.devnull), help="file of trainings, to continue"
    )
    args = parser.parse_args()
    budget, n_seeds, types, arms = BUDGET, SEEDS, list(FAULTS), tuple(ARMS)
    if args.quick:
        budget, n_seeds, types = QUICK, 2, types[:2]
    if args.wide:
        budget, types, arms = WIDE, WIDE_TYPES, WIDE_ARMS
    torch.set_num_threads(1)
    rows = read_rows(args.results, budget)
    try:
        train_missing(order_jobs(types, n_seeds, arms), rows, budget, args.results)
    except KeyboardInterrupt:
        print("interrupted: this is what there is so far")
    seconds = sum(row["seconds"] for row in rows)
    print(f"{len(rows)} trainings, {seconds:.0f} s of a core, {BASE} {ARMS[BASE] | budget}")
    learned = min((row["id_swap_auc"] for row in rows), default=None)
    print(f"lowest id_swap_auc, which is 1 where the ids are told apart: {learned}")
    effects = print_effects(collect(rows))
    bf16 = print_bf16(effects)
    said = {"effects": effects, "bf16": bf16, "budget": budget, "trainings": len(rows)}
    print(json.dumps(said | {"seconds": seconds}))


if __name__ == "__main__":
    main()
