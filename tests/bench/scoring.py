"""Scoring speed of 10 s clips with all their windows, against a naive loop; and of a single clip.

    python -m tests.bench.scoring [--quick] [--threads N]

The paper's network, untrained, as a saved detector. Ours scores int16 waveforms of a pack;
`tests.bench.naive` decodes WAVs in a DataLoader, transforms them whole and scores the same windows,
in batches of about as many. Repetitions take turns; rates are medians on the clock, ratios medians
over repetitions. A single clip is scored on one thread and on two: warm is the median of several,
cold the first one of a new process, from reading the detector's files to the score, its imports
left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from mimimi_core.config import NetworkConfig, TrainConfig, TrialConfig
from mimimi_core.detector import Detector, Member
from mimimi_core.network import build_network
from mimimi_core.pack import Pack
from mimimi_core.precision import use_bf16
from tests.bench.naive import NaiveClips, NaiveNetwork, score
from tests.bench.stopwatch import N_IDS, Stopwatch, machine, record_clips

CLIPS_PER_NAIVE_BATCH = 6  # of 5 windows each, near the 32 of a training batch
CPU = torch.device("cpu")


def save_detector(folder: Path, config: TrialConfig, pack: Pack) -> Path:
    """An untrained detector of the pack's ids."""
    member = Member(config=config, network=build_network(config.network, N_IDS, config.frontend))
    thresholds = dict.fromkeys(pack.machine_ids)
    Detector(
        members=[member],
        machine_type=pack.machine_type,
        machine_ids=pack.machine_ids,
        thresholds=thresholds,
    ).save(folder)
    return folder


def warm_ms(detector: Detector, waveform: np.ndarray, repetitions: int) -> float:
    """Median time of scoring one clip, after two that do not count."""
    found = []
    for _ in range(repetitions + 2):
        start = perf_counter()
        detector.score([waveform], detector.machine_ids[0])
        found.append(perf_counter() - start)
    return 1000 * median(found[2:])


def cold_ms(detector: Path, waveform: Path, threads: int) -> float:
    """Time that a new process needs for its first clip."""
    command = (sys.executable, "-m", "tests.bench.scoring", "--cold", detector, waveform)
    call = [*map(str, command), "--threads", str(threads)]
    return float(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)


def first_score_ms(folder: Path, waveform: Path) -> float:
    """What `cold_ms` asks of its process."""
    samples = np.load(waveform)
    start = perf_counter()
    detector = Detector.load(folder)
    detector.score([samples], detector.machine_ids[0])
    return 1000 * (perf_counter() - start)


def measure(folder: Path, quick: bool, threads: int) -> dict[str, Any]:
    """All figures."""
    pack = record_clips(folder, 4, n_test=1 if quick else 6)
    clips = np.flatnonzero(pack.splits != "train")[: 4 if quick else 48]
    chosen = "bf16" if use_bf16("auto", CPU) else "fp32"
    config = TrialConfig(network=NetworkConfig(channels=4) if quick else NetworkConfig())
    saved = save_detector(folder / "detector", config, pack)
    detector = Detector.load(saved)
    fp32 = TrialConfig(network=config.network, train=TrainConfig(precision="fp32"))
    detectors = {"fp32": Detector.load(save_detector(folder / "fp32", fp32, pack))}
    detectors[chosen] = detector
    naive = NaiveNetwork(config.network, N_IDS)
    paths = [folder / pack.names[i] for i in clips]
    naive_clips = NaiveClips(paths, pack.id_index[clips], config.frontend, all_windows=True)
    watch = Stopwatch()
    for used in detectors.values():
        used.score_pack(pack, clips[:13])
    for _ in range(1 if quick else 5):
        for name, used in detectors.items():
            with watch.time(name):
                used.score_pack(pack, clips)
        with watch.time("naive"):
            score(naive, naive_clips, CLIPS_PER_NAIVE_BATCH)
    one = pack.samples[pack.starts[clips[0]] :][: pack.lengths[clips[0]]]
    waveform = folder / "clip.npy"
    np.save(waveform, one)
    found: dict[str, Any] = {
        "clips_per_s": len(clips) / watch.seconds(chosen),
        "ratio_to_naive": watch.ratio("naive", chosen),
        "cpu_ratio_to_naive": watch.cpu_ratio("naive", chosen),
        "fp32_clips_per_s": len(clips) / watch.seconds("fp32"),
        "fp32_ratio_to_naive": watch.ratio("naive", "fp32"),
        "naive_clips_per_s": len(clips) / watch.seconds("naive"),
        "precision": chosen,
        "clips": len(clips),
    }
    for n, name in ((1, "one_thread"), (2, "two_threads")):
        torch.set_num_threads(n)
        found[f"warm_ms_{name}"] = warm_ms(detector, one, 1 if quick else 15)
        found[f"cold_ms_{name}"] = cold_ms(saved, waveform, n)
    torch.set_num_threads(threads)
    return found | machine()


def print_table(found: dict[str, Any]) -> None:
    """For people."""
    print("        clips/s  x naive")
    print(f"naive {found['naive_clips_per_s']:9.1f}")
    print(f"fp32  {found['fp32_clips_per_s']:9.1f}{found['fp32_ratio_to_naive']:9.1f}")
    print(f"{found['precision']:6}{found['clips_per_s']:9.1f}{found['ratio_to_naive']:9.1f}")
    for name in ("one_thread", "two_threads"):
        warm, cold = found[f"warm_ms_{name}"], found[f"cold_ms_{name}"]
        print(f"one clip, {name.replace('_', ' ')}: {warm:.0f} ms warm, {cold:.0f} ms cold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the channels, once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cold", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cold:
        print(first_score_ms(*args.cold))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.quick, args.threads)
    print_table(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
