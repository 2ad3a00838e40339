"""Training speed on a GPU: alone, with several trials on one, and with several seeds as one.

    python -m tests.bench.gpu [--quick] [--profile]

The paper's network, batches of 32, crops of resident int16 clips, noise, masks and shifts. Prints
clips/s and the share of the best matrix product, in bf16 and fp32, also of compiled steps; then the
clips/s of 1, 2, 4 and 8 trainings at once, packed (each in a process of its own, as a search starts
them) and fused (their networks stacked in one), in bf16; by how much fused losses differ from those
of separate trainings; and what a trial needs of the GPU's memory, with the share that follows.

Epochs run with torch's check for hidden waits for the device, which raises at the first one; the
loss, fetched once when an epoch is over, is let through. Without a GPU says so and ends without
figures.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty
from time import perf_counter
from typing import Any

import torch
import torch.multiprocessing as mp

from mimimi_core import fused
from mimimi_core.config import FrontendConfig, NetworkConfig, Precision, TrialConfig
from mimimi_core.pack import Pack, open_pack
from mimimi_core.training import Training
from search.gpu_share import Memory, memory_of
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
_PATIENCE_S = 300  # of trainings that are ready for those that are not


def with_seeds(config: TrialConfig, pack: Pack, n: int, device: torch.device) -> list[Training]:
    """Trainings that differ in their seed, on one copy of the clips."""
    first = Training(config, pack, device)
    seeds = [replace(config, train=replace(config.train, seed=seed)) for seed in range(1, n)]
    return [first, *(Training(x, pack, device, crops=first.crops) for x in seeds)]


def clips_per_s(trainings: list[Training], epochs: int) -> float:
    """Rate over several epochs after a first one, which warms up; of several trainings fused."""
    device = trainings[0].device
    take_steps(trainings)
    synchronize(device)
    start = perf_counter()
    for _ in range(epochs):
        take_steps(trainings)
    synchronize(device)
    n_clips = sum(len(training.batches.clips) for training in trainings)
    return epochs * n_clips / (perf_counter() - start)


def take_steps(trainings: list[Training]) -> torch.Tensor:
    """An epoch's steps; losses `(S,)`."""
    if len(trainings) == 1:
        return trainings[0].train_steps()[None]
    return fused.train_steps(trainings)


def check_for_waits(trainings: list[Training]) -> None:
    """Take an epoch's steps with every hidden wait for the device an error.

    Raises:
        RuntimeError: By torch, at the line that waits.
    """
    take_steps(trainings)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_steps(trainings)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def fused_gap(config: TrialConfig, pack: Pack, n: int, device: torch.device) -> float:
    """Largest relative difference of a fused seed's mean loss from its own after an epoch."""
    found = take_steps(with_seeds(config, pack, n, device))
    alone = torch.cat([take_steps([x]) for x in with_seeds(config, pack, n, device)])
    return float(((found - alone) / alone).abs().max())


def _train_beside(
    config: TrialConfig, pack: Path, device: str, epochs: int, start: Any, rates: Any
) -> None:
    training = Training(config, open_pack(pack), torch.device(device))
    training.train_steps()
    start.wait()
    rates.put(clips_per_s([training], epochs))


def packed_clips_per_s(
    config: TrialConfig, pack: Path, n: int, device: torch.device, epochs: int
) -> float:
    """Clips/s of `n` trainings at once, each in its process, summed.

    Raises:
        RuntimeError: One of them died.
    """
    context = mp.get_context("spawn")
    start, rates = context.Barrier(n, timeout=_PATIENCE_S), context.Queue()
    arguments = (config, pack, str(device), epochs, start, rates)
    # Daemons, so that none outlives the bench where another one died.
    processes = [
        context.Process(target=_train_beside, args=arguments, daemon=True) for _ in range(n)
    ]
    for process in processes:
        process.start()
    found = [_next_rate(rates, processes) for _ in processes]
    for process in processes:
        process.join()
    return sum(found)


def _next_rate(rates: Any, processes: Sequence[Any]) -> float:
    """Of whoever is ready next; a rate that will never come is not waited for."""
    while True:
        with suppress(Empty):
            return float(rates.get(timeout=1.0))
        if any(process.exitcode for process in processes):
            raise RuntimeError("one of the trainings at once died, see its traceback")


def several_at_once(
    config: TrialConfig, pack: Pack, device: torch.device, epochs: int, counts: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Clips/s of all trainings together, packed and fused, by their number."""
    return {
        "packed_clips_per_s": {
            str(n): packed_clips_per_s(config, pack.path, n, device, epochs) for n in counts
        },
        "fused_clips_per_s": {
            str(n): clips_per_s(with_seeds(config, pack, n, device), epochs) for n in counts
        },
    }


def memory_alone(config: TrialConfig, pack: Path, device: torch.device) -> Memory:
    """What a process with one training needs, if nothing else is on the GPU yet."""
    with ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:
        return pool.submit(_memory, config, pack, device).result()


def _memory(config: TrialConfig, pack: Path, device: torch.device) -> Memory:
    return memory_of(config, open_pack(pack), device)


def measure(pack: Pack, quick: bool, with_profile: bool) -> dict[str, Any]:
    """All figures."""
    device, epochs = torch.device("cuda"), 1 if quick else 5
    precisions: tuple[Precision, ...] = ("bf16", "fp32")
    # First, for whatever this process holds of the GPU would count as the trial's.
    memory = memory_alone(configure("bf16", quick), pack.path, device)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device)}
    for precision in precisions:
        config = configure(precision, quick)
        training = Training(config, pack, device)
        check_for_waits([training])
        rate, peak = clips_per_s([training], epochs), matmul_peak(DTYPES[precision], device)
        compiled = replace(config, train=replace(config.train, compile=True))
        found[precision] = {
            "clips_per_s": rate,
            "compiled_clips_per_s": clips_per_s([Training(compiled, pack, device)], epochs),
            "peak_gflops": peak / 1e9,
            "share_of_peak": rate * step_flops(config, N_IDS) / peak,
        }
        if with_profile:
            with torch.profiler.profile() as profile:
                training.train_steps()
                synchronize(device)
            print(precision, profile.key_averages().table("self_cuda_time_total", row_limit=20))
    config = configure("bf16", quick)
    check_for_waits(with_seeds(config, pack, 2, device))
    closed = replace(
        config,
        frontend=FrontendConfig(kind="logmel"),
        network=NetworkConfig(kind="mahalanobis"),
    )
    check_for_waits([Training(closed, pack, device)])
    found["fused_gap"] = fused_gap(configure("fp32", quick), pack, 2, device)
    found |= several_at_once(config, pack, device, epochs, PACKING)
    found |= {"trial_gib": memory.needed / 2**30, "gpu_gib": memory.total / 2**30}
    return found | {"trials_that_share": memory.n_trials} | machine()


def print_table(found: dict[str, Any]) -> None:
    """For people."""
    print(found["device"])
    for precision in ("bf16", "fp32"):
        row = found[precision]
        print(
            f"{precision} {row['clips_per_s']:9.1f} clips/s, {row['share_of_peak']:.0%} of "
            f"{row['peak_gflops']:.0f} GFLOP/s; compiled {row['compiled_clips_per_s']:9.1f} clips/s"
        )
    for n, packed in found["packed_clips_per_s"].items():
        together = found["fused_clips_per_s"][n]
        print(f"{n} trainings at once: packed {packed:9.1f}, fused {together:9.1f} clips/s")
    print(
        f"a trial needs {found['trial_gib']:.2f} of {found['gpu_gib']:.1f} GiB: "
        f"{found['trials_that_share']} share the GPU"
    )
    print(f"fused losses differ by at most {found['fused_gap']:.1e} of their size")


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
