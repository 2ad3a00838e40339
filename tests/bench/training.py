"""Training speed, end to end from packed clips, against a naive loop and the machine's own limit.

    python -m tests.bench.training [--quick] [--threads N] [--profile]

The paper's network, batches of 32, one crop of each 10 s clip an epoch. Ours cuts, transforms and
augments the crops (noise, masks and shifts), steps, and sums the loss; `tests.bench.naive` decodes
WAVs in a DataLoader, and augments nothing. Repetitions take turns; rates are medians on the clock,
ratios medians over repetitions, and given in processor time as well, because other work on the
machine disturbs that less. The limit is the best of several matrix products between the same
repetitions; the share of it counts the network's products, forward and backward, and nothing else.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import torch

from mimimi_core.config import AugmentConfig, NetworkConfig, Precision, TrainConfig, TrialConfig
from mimimi_core.pack import Pack
from mimimi_core.precision import use_bf16
from mimimi_core.training import Training
from tests.bench.naive import NaiveClips, NaiveNetwork, train_epoch
from tests.bench.stopwatch import (
    N_IDS,
    Stopwatch,
    TimedCall,
    machine,
    matmul_peak,
    record_clips,
    step_flops,
)

CPU = torch.device("cpu")
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def configure(precision: Precision, quick: bool) -> TrialConfig:
    """The paper's network with three augmentations; `quick` takes a tenth of its channels."""
    return TrialConfig(
        network=NetworkConfig(channels=4) if quick else NetworkConfig(),
        augment=AugmentConfig(noise=True, mask=True, shift=True),
        train=TrainConfig(precision=precision),
    )


class Ours:
    """Epochs of `Training`, and how long they waited for data."""

    def __init__(self, config: TrialConfig, pack: Pack) -> None:
        self._training = Training(config, pack, CPU)
        batches = self._training.batches
        self.crops = TimedCall(batches.crops.random)
        self.features = TimedCall(batches.draw)  # the crops included
        batches.crops.random = self.crops  # type: ignore[method-assign, assignment]
        batches.draw = self.features  # type: ignore[method-assign, assignment]

    def epoch(self) -> None:
        """One crop of every clip."""
        float(self._training.train_steps())

    def profile(self) -> str:
        """Table of the operations of an epoch that take longest."""
        with torch.profiler.profile() as profile:
            self.epoch()
        return str(profile.key_averages().table("self_cpu_time_total", row_limit=20))


def measure(folder: Path, quick: bool, with_profile: bool) -> dict[str, Any]:
    """All figures."""
    n_clips, repetitions = (8, 1) if quick else (64, 5)
    pack = record_clips(folder, n_clips, n_test=1)
    clips = pack.select("train", label=0)
    precisions: list[Precision] = ["fp32"]
    if use_bf16("auto", CPU):
        precisions.insert(0, "bf16")
    ours = {p: Ours(configure(p, quick), pack) for p in precisions}
    config = configure("fp32", quick)
    naive = NaiveNetwork(config.network, N_IDS)
    optimizer = torch.optim.Adam(naive.parameters(), lr=1e-4)
    paths = [folder / pack.names[i] for i in clips]
    naive_clips = NaiveClips(paths, pack.id_index[clips], config.frontend, all_windows=False)
    for p in precisions:
        ours[p].epoch()  # the first one is slower: memory is taken, kernels are made
    watch, peaks = Stopwatch(), dict.fromkeys(precisions, 0.0)
    for p in precisions:
        ours[p].crops.seconds = ours[p].features.seconds = 0.0
    for _ in range(repetitions):
        for p in precisions:
            peaks[p] = max(peaks[p], matmul_peak(DTYPES[p], CPU, 1 if quick else 3))
            with watch.time(p):
                ours[p].epoch()
        with watch.time("naive"):
            train_epoch(naive, optimizer, naive_clips, config.train.batch_size)
    flops = step_flops(config, N_IDS)
    rates = {}
    for p in precisions:
        spent = sum(watch.wall[p])
        rate = len(clips) / watch.seconds(p)
        rates[p] = {
            "clips_per_s": rate,
            "ratio_to_naive": watch.ratio("naive", p),
            "cpu_ratio_to_naive": watch.cpu_ratio("naive", p),
            "peak_gflops": peaks[p] / 1e9,
            "share_of_peak": rate * flops / peaks[p],
            "wait_share": ours[p].crops.seconds / spent,
            "feature_share": (ours[p].features.seconds - ours[p].crops.seconds) / spent,
        }
    if with_profile:
        for p in precisions:
            print(f"{p}: one epoch of {len(clips)} clips", ours[p].profile(), sep="\n")
    chosen = precisions[0]
    return {
        **rates[chosen],
        "naive_clips_per_s": len(clips) / watch.seconds("naive"),
        "precision": chosen,
        "gflops_per_clip": flops / 1e9,
        "precisions": rates,
        "repetitions": repetitions,
        "clips": len(clips),
        **machine(),
    }


def print_table(found: dict[str, Any]) -> None:
    """For people."""
    print(f"{'':6}clips/s  x naive (processor time)  of peak GFLOP/s  waits  features")
    print(f"{'naive':6}{found['naive_clips_per_s']:7.1f}")
    for name, row in cast(dict[str, dict[str, float]], found["precisions"]).items():
        print(
            f"{name:6}{row['clips_per_s']:7.1f}{row['ratio_to_naive']:9.1f}"
            f"{row['cpu_ratio_to_naive']:17.1f}{row['share_of_peak']:10.0%}"
            f"{row['peak_gflops']:9.0f}{row['wait_share']:7.1%}{row['feature_share']:10.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the channels, once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="print where an epoch's time goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.quick, args.profile)
    print_table(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
