"""How well figures that need no anomaly rank networks: their rank correlation with the true AUCs.

    python -m tests.bench.label_free [--quick]

Random configurations are trained on the four machine types of the embedded data set, one seed
each. All figures are those of the last epoch, as a search without labels would meet them.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from mimimi_core.clips import find_clips
from mimimi_core.config import TrialConfig
from mimimi_core.pack import Pack, open_pack, pack_clips
from mimimi_core.synth import write_synthetic
from mimimi_core.training import LabelFree, NonFiniteLossError, Training
from search.rank_correlation import MIN_TRIALS, RankCorrelation, spearman
from search.rank_correlation import correlate_ranks as correlate

FIGURES = (*get_args(LabelFree), "val_auc")  # the last one, of the labelled clips, is the yardstick
AUCS = ("val_auc", "test_auc")
LEARNED = 0.99  # id_swap_auc of a network that has learned its task
_RESAMPLINGS = 2000

Found = dict[str, list[dict[str, float]]]  # machine type -> figures of each configuration


def draw_params(rng: np.random.Generator, epochs: int) -> dict[str, Any]:
    """One random configuration."""
    return {
        "train.lr": float(10 ** rng.uniform(-4, np.log10(3e-2))),
        "network.channels": int(rng.integers(4, 9)),
        "network.attention": bool(rng.integers(2)),
        "augment.mixing": bool(rng.integers(2)),
        "frontend.normalization": str(rng.choice(["none", "rms"])),
        "network.depth": 4,
        "frontend.n_fft": 512,
        "frontend.n_frames": 32,
        "train.batch_size": 16,
        "train.epochs": epochs,
    }


class _UnwatchedTraining(Training):
    """Scores the validation clips after the last epoch only, which saves half of the time."""

    def _val_metrics(self) -> dict[str, float]:
        return super()._val_metrics() if self.is_done else {}


def train(params: dict[str, Any], pack: Pack) -> dict[str, float] | None:
    """The last epoch's figures and `test_auc`, or None if the loss stops being a number."""
    training = _UnwatchedTraining(TrialConfig.from_params(params), pack)
    try:
        while not training.is_done:
            metrics = training.run_epoch()
        test_auc = training.auc_report("test").auc
    except NonFiniteLossError as error:
        print(error)
        return None
    assert test_auc is not None  # the embedded data set has both labels of every id
    return metrics | {"test_auc": test_auc}


def mean_rho(tables: list[np.ndarray]) -> RankCorrelation:
    """Mean over machine types of Spearman's correlation; resampled are the configurations of each.

    Args:
        tables: Of each machine type the two columns `(n, 2)`.
    """
    n = sum(len(pairs) for pairs in tables)
    rho = float(np.mean([correlate(pairs[None]) for pairs in tables])) if tables else np.nan
    if np.isnan(rho):
        return RankCorrelation("mean", n, None, None)
    rng = np.random.default_rng(0)
    picks = [rng.integers(len(pairs), size=(_RESAMPLINGS, len(pairs))) for pairs in tables]
    resampled = np.mean(
        [correlate(pairs[picked]) for pairs, picked in zip(tables, picks, strict=True)], axis=0
    )
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return RankCorrelation("mean", n, rho, (float(low), float(high)))


def chosen_test_auc(rows: list[dict[str, float]], figure: str) -> float:
    """`test_auc` of the configuration with the best figure, mean over ties."""
    values, test = _columns(rows, figure, "test_auc").T
    return float(test[values == values.max()].mean())


def _columns(rows: list[dict[str, float]], *names: str) -> np.ndarray:
    return np.array([[row[name] for name in names] for row in rows])


def _shown(found: RankCorrelation) -> str:
    if found.rho is None or found.interval is None:
        return "none"
    return f"{found.rho:+.2f} [{found.interval[0]:+.2f}, {found.interval[1]:+.2f}]"


def _print_row(*cells: str) -> None:
    name, figure, n, *others = cells
    print(f"{name:8}{figure:24}{n:>3}{''.join(f'{cell:>24}' for cell in others)}")


def print_types(found: Found) -> None:
    """Print a row per machine type and figure."""
    print("Spearman's rank correlation with a 95 % bootstrap interval over configurations; and the")
    print("test_auc of all configurations (mean), of the one with the best figure, of the best one")
    _print_row("", "", "n", "with val_auc", "with test_auc", "test_auc")
    for machine_type, rows in found.items():
        test = _columns(rows, "test_auc")
        for figure in FIGURES:
            cells = [
                "" if figure == auc else _shown(spearman(figure, _columns(rows, figure, auc)))
                for auc in AUCS
            ]
            chosen = chosen_test_auc(rows, figure)
            cells.append(f"{test.mean():.3f}, {chosen:.3f}, {test.max():.3f}")
            _print_row(machine_type, figure, str(len(rows)), *cells)


def print_means(found: Found, name: str) -> dict[str, Any]:
    """Print a row per figure, the means over machine types; returns them by name."""
    n = sum(len(rows) for rows in found.values())
    said: dict[str, Any] = {"configurations": n, "machine_types": len(found)}
    for figure in FIGURES:
        cells = []
        for auc in AUCS:
            correlation = mean_rho([_columns(rows, figure, auc) for rows in found.values()])
            cells.append("" if figure == auc else _shown(correlation))
            if figure != auc:
                said[f"{figure}_{auc}_rho"] = correlation.rho
                said[f"{figure}_{auc}_rho_ci"] = correlation.interval
        chosen = [chosen_test_auc(rows, figure) for rows in found.values()]
        said[f"{figure}_chosen_test_auc"] = float(np.mean(chosen)) if chosen else None
        cells.append(f"{np.mean(chosen):.3f}" if chosen else "none")
        _print_row(name, figure, str(n), *cells)
    return said


def learned(found: Found) -> Found:
    """The configurations that tell the ids apart, of machine types that have enough of them."""
    kept = {
        machine_type: [row for row in rows if row["id_swap_auc"] >= LEARNED]
        for machine_type, rows in found.items()
    }
    return {machine_type: rows for machine_type, rows in kept.items() if len(rows) >= MIN_TRIALS}


def main() -> None:
    """Print a table of all and the means, also of those that have learned, then the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.label_free")
    parser.add_argument("--quick", action="store_true", help="5 configurations of 2 epochs")
    n, epochs = (5, 2) if parser.parse_args().quick else (20, 16)
    torch.set_num_threads(1)
    found: Found = {}
    with tempfile.TemporaryDirectory() as scratch:
        manifest = find_clips(write_synthetic(Path(scratch) / "embedded"))
        for index, (machine_type, clips) in enumerate(manifest.items()):
            pack = open_pack(pack_clips(clips, Path(scratch)))
            rng = np.random.default_rng(index)
            trained = [train(draw_params(rng, epochs), pack) for _ in range(n)]
            found[machine_type] = [metrics for metrics in trained if metrics]
    print(f"{n} configurations a machine type, {epochs} epochs, one seed each")
    print_types(found)
    said = print_means(found, "mean")
    print(f"only those with id_swap_auc >= {LEARNED}, of types with {MIN_TRIALS} or more:")
    only = {f"learned_{key}": value for key, value in print_means(learned(found), "mean").items()}
    print(json.dumps(said | only | {"epochs": epochs}))


if __name__ == "__main__":
    main()
