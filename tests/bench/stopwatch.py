"""What the benches of speed share: recordings, clocks, and what the machine could do at most."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mimimi_core.clips import find_clips
from mimimi_core.config import TrialConfig
from mimimi_core.network import build_network
from mimimi_core.pack import Pack, open_pack, pack_clips
from tests.audio_fixtures import write_wav
from tests.model_fixtures import tone

CLIP_SAMPLES = 160_000  # 10 s, as in DCASE 2020
N_IDS = 4
_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}  # of square matrices


def record_clips(folder: Path, n_train: int, n_test: int) -> Pack:
    """Write 10 s WAVs of hums that `N_IDS` machines make, and pack them.

    Args:
        folder: Gets them in the DCASE 2020 layout, below it `packs`.
        n_train: Normal clips in all that are trained on; some more are held out.
        n_test: Normal clips of each id in the test folder, and as many anomalies.
    """
    rng = np.random.default_rng(0)
    n_of_id = -(-n_train // N_IDS) * 5 // 4 + 2  # a tenth or so is held out
    for index in range(N_IDS):
        counts = [("train", "normal", n_of_id)]
        counts += [("test", label, n_test) for label in ("normal", "anomaly")]
        for split, label, n in counts:
            for number in range(n):
                name = f"{label}_id_{2 * index:02d}_{number:08d}.wav"
                write_wav(folder / "fan" / split / name, tone(500 + 300 * index, rng, CLIP_SAMPLES))
    return open_pack(pack_clips(find_clips(folder)["fan"], folder / "packs"))


@dataclass
class Stopwatch:
    """Seconds of repetitions by name, on the clock and of the processor."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time one repetition; child processes that end within it count as well."""
        wall, cpu = perf_counter(), _cpu_seconds()
        yield
        self.wall.setdefault(name, []).append(perf_counter() - wall)
        self.cpu.setdefault(name, []).append(_cpu_seconds() - cpu)

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster on the clock: median over repetitions, each beside the other."""
        return _ratio(self.wall[slow], self.wall[fast])

    def cpu_ratio(self, slow: str, fast: str) -> float:
        """The same in processor time, which other work on the machine disturbs less."""
        return _ratio(self.cpu[slow], self.cpu[fast])

    def seconds(self, name: str) -> float:
        """Median on the clock."""
        return median(self.wall[name])


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _cpu_seconds() -> float:
    children = os.times()
    return process_time() + children.children_user + children.children_system


class TimedCall:
    """A function that adds up how long it took."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function, self.seconds = function, 0.0

    def __call__(self, *args: object) -> object:
        start = perf_counter()
        result = self._function(*args)
        self.seconds += perf_counter() - start
        return result


def matmul_peak(dtype: torch.dtype, device: torch.device, repetitions: int = 5) -> float:
    """Floating-point operations per second of the best square matrix product, best repetition."""
    best = 0.0
    for n in _SIZES[device.type]:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype, device=device)
        for _ in range(repetitions + 1):  # one to warm up
            synchronize(device)
            start = perf_counter()
            torch.mm(a, b, out=out)
            synchronize(device)
            best = max(best, 2 * n**3 / (perf_counter() - start))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for all that was asked of a GPU; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_flops(config: TrialConfig, n_ids: int) -> int:
    """Floating-point operations of a training step's products per crop, forward and backward."""
    n = config.train.batch_size
    with torch.device("meta"):
        network = build_network(config.network, n_ids, config.frontend)
        crops = torch.empty(n, *config.frontend.feature_shape)
        target = torch.empty(n, n_ids)
    counter = FlopCounterMode(display=False)
    with counter:
        torch.stack(list(network.losses(crops, target).values())).sum().backward()
    return counter.get_total_flops() // n


def machine() -> dict[str, object]:
    """What a reader needs to know of the machine and what else it did."""
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "torch": torch.__version__,
    }
