"""Records the learning curves that `tests.bench.multifidelity` replays: own trials, real trainings.

Every point of a small grid is trained on the embedded data set: half an hour of one core for a
machine type. Stopped and started again, it continues.

    python -m tests.bench.record_curves fan pump
"""

import argparse
import itertools
import json
from pathlib import Path

import torch

from mimimi_core.config import TrialConfig
from mimimi_core.metrics import AucReport
from mimimi_core.pack import open_pack, pack_clips
from mimimi_core.synth import list_synthetic, write_synthetic
from mimimi_core.training import NonFiniteLossError, Training
from tests.bench.curves import OWN

EPOCHS = (1, 2, 3, 6, 9, 18, 27)  # where rungs can be; between them nobody asks for an AUC
GRID = {
    "train.lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "network.channels": [4, 8],
    "network.kernel_height_early": [3, 7],
    "network.attention": [False, True],
    "augment.mixing": [False, True],
    "frontend.normalization": ["none", "rms"],
}
FIXED = {
    "network.depth": 4,
    "frontend.n_fft": 512,
    "frontend.n_frames": 32,
    "train.batch_size": 16,
    "train.epochs": EPOCHS[-1],
}


class _SparseTraining(Training):
    """Scores the validation clips at `EPOCHS` only, which saves half of the time."""

    def auc_report(self, *splits: str) -> AucReport:
        if self.epoch in EPOCHS:
            return super().auc_report(*splits)
        return AucReport(auc=None, pauc=None, ci=None, worst_auc=None, per_id=())


def record(machine_types: list[str], scratch: Path) -> None:
    """Fill `OWN` with what is missing of these machine types."""
    folder = write_synthetic(scratch / "embedded")
    manifest = list_synthetic(folder)  # of the folder: a search's own may lie below it
    found = json.loads(OWN.read_text())["curves"] if OWN.exists() else {}
    grid = list(itertools.product(*GRID.values()))
    for machine_type in machine_types:
        pack = open_pack(pack_clips(manifest[machine_type], scratch / "packs"))
        curves = found.setdefault(machine_type, [])
        for point in grid[len(curves) :]:
            params = FIXED | dict(zip(GRID, point, strict=True))
            training = _SparseTraining(TrialConfig.from_params(params), pack)
            curves.append(_curve(training))
            _write(found)
            print(machine_type, len(curves), "of", len(grid), curves[-1], flush=True)


def _curve(training: Training) -> list[float]:
    """`val_auc` at each of `EPOCHS`; shorter if the loss stops being a number."""
    values = []
    try:
        for epoch in range(1, EPOCHS[-1] + 1):
            metrics = training.run_epoch()
            if epoch in EPOCHS:
                values.append(round(metrics["val_auc"], 4))
    except NonFiniteLossError as error:
        print(error)
    return values


def _write(curves: dict[str, list[list[float]]]) -> None:
    content = {
        "about": "val_auc of own trials on the embedded data set (python -m tests.bench."
        "record_curves); one row per point of the grid, the last parameter varying fastest, one "
        "column per epoch of epochs",
        "epochs": EPOCHS,
        "grid": GRID,
        "fixed": FIXED,
        "curves": curves,
    }
    temporary = OWN.with_suffix(".tmp")
    temporary.write_text(json.dumps(content).replace("], [", "],\n[") + "\n")
    temporary.replace(OWN)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machine_types", nargs="+")
    parser.add_argument("--scratch", type=Path, default=Path("runs"), help="for data and packs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record(options.machine_types, options.scratch)
