"""Training speed on a GPU: alone, and with several trials on one.

    python -m tests.bench.gpu [--quick] [--profile]

The paper's network, batches of 32, crops of resident int16 clips, noise, masks and shifts. Prints
clips/s and the share of the best matrix product, in bf16 and fp32; then the clips/s of 1, 2, 4 and
8 trainings at once, each in a process of its own as a search starts them. Epochs run with torch's
check for hidden waits for the device, which raises at the first one; the loss, fetched once when
an epoch is over, is let through. Without a GPU says so and ends without figures.
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.multiprocessing as mp

from mimimi_core.config import Precision
from mimimi_core.pack import Pack, open_pack
from mimimi_core.training import Training
from tests.bench.stopwatch import (
    N_IDS,
    machine,
    matmul_peak,
    record_clips,
    step_flops,
    synchronize,
)
from tests.bench.training import DTYPES, configure

PACKING = (1, 2, 4, 8)


def clips_per_s(training: Training, epochs: int) -> float:
    """Rate over several epochs after a first one, which warms up."""
    training.train_steps()
    synchronize(training.device)
    start = perf_counter()
    for _ in range(epochs):
        training.train_steps()
    synchronize(training.device)
    return epochs * len(training.batches.clips) / (perf_counter() - start)


def check_for_waits(training: Training) -> None:
    """Take an epoch's steps with every hidden wait for the device an error.

    Raises:
        RuntimeError: By torch, at the line that waits.
    """
    training.train_steps()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.train_steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _train_beside(pack: Path, quick: bool, epochs: int, start: Any, rates: Any) -> None:
    training = Training(configure("bf16", quick), open_pack(pack), torch.device("cuda"))
    training.train_steps()
    start.wait()
    rates.put(clips_per_s(training, epochs))


def packed_clips_per_s(pack: Path, n: int, quick: bool, epochs: int) -> float:
    """Clips/s of `n` trainings at once, summed."""
    context = mp.get_context("spawn")
    start, rates = context.Barrier(n), context.Queue()
    arguments = (pack, quick, epochs, start, rates)
    processes = [context.Process(target=_train_beside, args=arguments) for _ in range(n)]
    for process in processes:
        process.start()
    found = [rates.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return float(sum(found))


def measure(pack: Pack, quick: bool, with_profile: bool) -> dict[str, Any]:
    """All figures."""
    device, epochs = torch.device("cuda"), 1 if quick else 5
    precisions: tuple[Precision, ...] = ("bf16", "fp32")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device)}
    for precision in precisions:
        config = configure(precision, quick)
        training = Training(config, pack, device)
        check_for_waits(training)
        rate, peak = clips_per_s(training, epochs), matmul_peak(DTYPES[precision], device)
        found[precision] = {
            "clips_per_s": rate,
            "peak_gflops": peak / 1e9,
            "share_of_peak": rate * step_flops(config, N_IDS) / peak,
        }
        if with_profile:
            with torch.profiler.profile() as profile:
                training.train_steps()
                synchronize(device)
            print(precision, profile.key_averages().table("self_cuda_time_total", row_limit=20))
    found["packed_clips_per_s"] = {
        str(n): packed_clips_per_s(pack.path, n, quick, epochs) for n in PACKING
    }
    return found | machine()


def print_table(found: dict[str, Any]) -> None:
    """For people."""
    print(found["device"])
    for precision in ("bf16", "fp32"):
        row = found[precision]
        print(
            f"{precision} {row['clips_per_s']:9.1f} clips/s, {row['share_of_peak']:.0%} of "
            f"{row['peak_gflops']:.0f} GFLOP/s"
        )
    for n, rate in found["packed_clips_per_s"].items():
        print(f"{n} trainings at once: {rate:9.1f} clips/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the channels, one epoch")
    parser.add_argument("--profile", action="store_true", help="print where an epoch's time goes")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU is visible to torch: nothing was measured.")
        print(json.dumps({"device": None}))
        return
    with tempfile.TemporaryDirectory() as folder:
        pack = record_clips(Path(folder), 64 if args.quick else 2048, n_test=1)
        found = measure(pack, args.quick, args.profile)
    print_table(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
