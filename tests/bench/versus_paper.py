"""Whether a finished search beats the paper's setting, given the same time to train.

    python -m search.run --space spaces/complex.yaml --study NAME ...
    python -m tests.bench.versus_paper runs/NAME

The paper's configuration is trained for the seconds that all trials and confirmations of a machine
type took together, one thread as each of them had, with a seed of its own. It keeps the network of
its best epoch by val_auc. Then both meet the test clips, with the test that promotion asks.
"""

import argparse
import dataclasses
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import optuna
import torch

from mimimi_core.comparison import compare_aucs
from mimimi_core.config import TrainConfig, TrialConfig
from mimimi_core.detector import Detector
from mimimi_core.metrics import auc_report
from mimimi_core.pack import Pack, open_pack
from mimimi_core.training import Training
from search.storages import JOURNAL
from search.studies import EPOCH

_MOST_EPOCHS = 10_000  # the time runs out before


def spent_seconds(study: optuna.Study) -> float:
    """Of all trials and confirmations."""
    epochs = [
        metrics["seconds"]
        for trial in study.get_trials(deepcopy=False)
        for name, metrics in trial.user_attrs.items()
        if name.startswith(EPOCH)
    ]
    fresh = [
        note["seconds"]
        for name, note in study.user_attrs.items()
        if name.startswith("confirmation/") and "seconds" in note
    ]
    return sum(epochs) + sum(fresh)


def train_paper(pack: Pack, seconds: float, seed: int, scratch: Path) -> tuple[Training, int]:
    """The paper's setting after so many seconds, at its best epoch; and how many epochs it took."""
    torch.set_num_threads(1)
    config = TrialConfig(train=TrainConfig(epochs=_MOST_EPOCHS, seed=seed))
    training, best, started, epoch = Training(config, pack), -1.0, perf_counter(), 0
    state = scratch / f"{pack.machine_type}-{seed}.pt"
    while perf_counter() - started < seconds:
        metrics, epoch = training.run_epoch(), epoch + 1
        if metrics["val_auc"] > best:
            best = metrics["val_auc"]
            training.save(state, metrics)
    training.restore(state)
    return training, epoch


def judge(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """A machine type's figures; in a process of its own."""
    machine_type = name.rpartition("/")[2]
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    )
    seconds = spent_seconds(optuna.load_study(study_name=name, storage=storage))
    packs = sorted((folder.parent / "packs").glob(f"{machine_type}-*.arrow"))
    if len(packs) != 1:
        raise SystemExit(f"{folder.parent / 'packs'} must hold one pack of {machine_type}: {packs}")
    pack = open_pack(packs[0])
    with tempfile.TemporaryDirectory() as scratch:
        paper, epochs = train_paper(pack, seconds, seed, Path(scratch))
    clips = pack.select("test")
    labels, ids = pack.labels[clips], pack.id_index[clips]
    ours = Detector.load(folder / "models" / machine_type).score_pack(pack, clips).scores
    theirs = paper.scores(clips).scores
    found = compare_aucs(ours, theirs, labels, ids, margin=0.01)
    assert found is not None
    reports = [auc_report(scores, labels, ids, pack.machine_ids) for scores in (ours, theirs)]
    return {
        "machine_type": machine_type,
        "seconds": seconds,
        "paper_epochs": epochs,
        "search_test_auc": reports[0].auc,
        "paper_test_auc": reports[1].auc,
        **dataclasses.asdict(found),
    }


def main() -> None:
    """Print a row per machine type and seed, then the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.versus_paper")
    parser.add_argument("study", type=Path, help="folder of a finished search")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of the paper's setting")
    parser.add_argument("--workers", type=int, default=2, help="as many as trials ran at once")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(args.study / JOURNAL))
    )
    names = optuna.get_all_study_names(storage)
    jobs = [(name, args.study, seed) for seed in range(args.seeds) for name in names]
    context = multiprocessing.get_context("spawn")
    print(f"{'':8}{'seconds':>9}{'epochs':>8}{'search':>9}{'paper':>8}   difference on test")
    rows = []
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        for row in pool.map(judge, *zip(*jobs, strict=True)):
            rows.append(row)
            low, high = row["ci"]
            print(
                f"{row['machine_type']:8}{row['seconds']:9.0f}{row['paper_epochs']:8}"
                f"{row['search_test_auc']:9.3f}{row['paper_test_auc']:8.3f}   "
                f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}], {row['n_clips']} clips",
                flush=True,
            )
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
