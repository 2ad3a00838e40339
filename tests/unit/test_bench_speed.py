"""The naive yardstick computes what it should, and the benches of speed count what they should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mimimi_core import fused
from mimimi_core.clips import find_clips
from mimimi_core.config import NetworkConfig
from mimimi_core.crops import Crops
from mimimi_core.frontend import Frontend
from mimimi_core.network import build_network, network_cost
from mimimi_core.pack import open_pack, pack_clips
from mimimi_core.training import Training
from tests.audio_fixtures import write_dcase2020, write_wav
from tests.bench import driver, gpu, naive
from tests.bench.naive import NaiveClips, NaiveConv, NaiveNetwork, NaiveNorm
from tests.bench.stopwatch import Stopwatch, TimedCall, step_flops
from tests.bench.training import Ours
from tests.model_fixtures import AUGMENT_ALL, CPU, FRONTEND, NETWORK, tiny_config, tone, tone_pack

N_SAMPLES = 1000


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[np.ndarray]]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("wavs")
    clips = [tone(1000 + 900 * n, rng, N_SAMPLES) for n in range(6)]
    return [write_wav(folder / f"{n}.wav", clip) for n, clip in enumerate(clips)], clips


def test_four_real_convolutions_are_a_complex_one() -> None:
    torch.manual_seed(0)
    layer = NaiveConv(3, 4, (5, 3), (2, 2), (2, 1))
    z = torch.randn(2, 3, 11, 8, dtype=torch.complex64)
    weight = torch.complex(layer.real.weight, layer.imag.weight)
    torch.testing.assert_close(layer(z), F.conv2d(z, weight, None, (2, 2), (2, 1)))


def test_the_joint_norm_leaves_no_mean_and_a_modulus_of_one() -> None:
    torch.manual_seed(0)
    norm = NaiveNorm(3)
    z = 5 * torch.randn(16, 3, 9, 8, dtype=torch.complex64) + 2
    for _ in range(200):
        y = norm(z)
    for found in (y, norm.eval()(z)):
        mean = found.mean(dim=(0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        power = found.abs().square().mean(dim=(0, 2, 3))
        torch.testing.assert_close(power, torch.ones(3), rtol=0, atol=1e-3)


def test_it_has_the_layers_of_ours() -> None:
    config = NetworkConfig(channels=3)
    theirs, ours = NaiveNetwork(config, 2), build_network(config, 2)
    spectrum = torch.randn(2, 2, 513, 64)
    found = theirs(torch.complex(spectrum[:, :1], spectrum[:, 1:]))
    assert [x.shape for x in found] == [x.shape for x in ours(spectrum)]
    sizes = [sum(p.numel() for p in x.parameters() if p.ndim > 1) for x in (theirs, ours)]
    assert sizes[0] == sizes[1]


def test_its_windows_are_those_that_ours_scores(
    wavs: tuple[list[Path], list[np.ndarray]],
) -> None:
    paths, clips = wavs
    windows, claimed = NaiveClips(paths, np.arange(6), FRONTEND, all_windows=True)[2]
    crops = Crops.from_waveforms(clips, FRONTEND, CPU)
    offsets = 32 * torch.tensor([0, 8, 16, 22])
    expected = Frontend(FRONTEND)(crops.at(torch.full((4,), 2), offsets))
    assert claimed == 2
    torch.testing.assert_close(torch.cat([windows.real, windows.imag], dim=1), expected)


def test_it_learns_and_scores(
    wavs: tuple[list[Path], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naive, "WORKERS", 0)
    torch.manual_seed(0)
    ids = np.array([0, 0, 0, 1, 1, 1])
    network = NaiveNetwork(NETWORK, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    clips = NaiveClips(wavs[0], ids, FRONTEND, all_windows=False)
    losses = [naive.train_epoch(network, optimizer, clips, 3)[0] for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]
    own, other = (
        naive.score(network, NaiveClips(wavs[0], x, FRONTEND, all_windows=True), 4)
        for x in (ids, 1 - ids)
    )
    assert own.mean() < other.mean()


def test_ratios_compare_neighbours() -> None:
    watch = Stopwatch()
    watch.wall = {"slow": [8.0, 20.0, 9.0], "fast": [2.0, 4.0, 3.0]}
    watch.cpu = {"slow": [6.0, 6.0, 6.0], "fast": [2.0, 2.0, 1.0]}
    assert watch.ratio("slow", "fast") == 4.0
    assert watch.cpu_ratio("slow", "fast") == 3.0
    assert watch.seconds("fast") == 3.0


def test_a_repetition_has_a_time_on_both_clocks() -> None:
    watch = Stopwatch()
    with watch.time("sum"):
        sum(range(100_000))
    assert watch.wall["sum"][0] > 0
    assert watch.cpu["sum"][0] > 0


def test_a_step_is_three_forward_passes_but_for_the_gradient_of_the_input() -> None:
    config = tiny_config()
    forward = 2 * network_cost(config.network, config.frontend, 3).macs
    kernel, n_out = 7 * 5, 2 * config.network.channels
    first_layer = 2 * 2 * kernel * n_out * 17 * 4  # of 33 x 8 inputs
    assert step_flops(config, 3) == 3 * forward - first_layer


def test_a_drivers_rates_are_of_what_comes_after_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start: 100 s on the clock and 50 of the processor; then .5 s and 20 ms a trial."""
    ended: list[int] = []
    monkeypatch.setattr(driver.time, "perf_counter", lambda: 100 + 0.5 * len(ended))
    monkeypatch.setattr(driver.time, "process_time", lambda: 50 + 0.02 * len(ended))
    clock = driver.Clock(tmp_path / "ends")
    for number in range(2 * driver.WARM):
        ended.append(number)
        clock.note()
    figures = clock.figures()
    assert figures["trials"] == 64
    assert figures["trials_per_s"] == pytest.approx(2.0)
    assert figures["cpu_ms_per_trial"] == pytest.approx(20.0)


def test_what_is_timed_is_what_training_does() -> None:
    config, pack = tiny_config(), tone_pack()
    plain = Training(config, pack, CPU)
    expected = float(plain.train_steps())
    ours = Ours(config, pack)
    ours.epoch()
    assert 0 < ours.crops.seconds < ours.features.seconds
    assert float(plain.train_steps()) < expected  # the same epoch again, from better weights
    found = TimedCall(lambda a, b: a - b)
    assert found(5, 3) == 2


def test_fused_seeds_are_timed_over_the_clips_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter((0.0, 2.0, 0.0, 2.0))
    monkeypatch.setattr(gpu, "perf_counter", lambda: next(ticks))
    config, pack = tiny_config(AUGMENT_ALL), tone_pack()
    trainings = gpu.with_seeds(config, pack, 3, CPU)
    assert [training.config.train.seed for training in trainings] == [0, 1, 2]
    assert len({id(training.batches.crops) for training in trainings}) == 1
    n_clips = len(pack.select("train"))
    assert gpu.clips_per_s(trainings, epochs=5) == 5 * 3 * n_clips / 2
    assert gpu.clips_per_s(trainings[:1], epochs=5) == 5 * n_clips / 2


def test_the_gap_of_fused_seeds_is_rounding_and_would_show_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, pack = tiny_config(AUGMENT_ALL), tone_pack()
    assert gpu.fused_gap(config, pack, 2, CPU) < 1e-5
    train_steps = fused.train_steps
    monkeypatch.setattr(fused, "train_steps", lambda trainings: 1.5 * train_steps(trainings))
    assert gpu.fused_gap(config, pack, 2, CPU) == pytest.approx(0.5, rel=1e-4)


def test_packed_trainings_run_in_processes_of_their_own(tmp_path: Path) -> None:
    """One of them, since each imports torch anew."""
    clips = find_clips(write_dcase2020(tmp_path, n_train=4, n_test=2))["fan"]
    pack = open_pack(pack_clips(clips, tmp_path / "packs"))
    found = gpu.several_at_once(tiny_config(), pack, CPU, epochs=1, counts=(1,))
    assert found.keys() == {"packed_clips_per_s", "fused_clips_per_s"}
    assert all(rates["1"] > 0 for rates in found.values())


def test_a_training_that_dies_ends_the_others_and_the_bench(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="died"):
        gpu.packed_clips_per_s(tiny_config(), tmp_path / "no pack", 1, CPU, epochs=1)


def test_memory_is_measured_before_anything_else_is_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Measured(Exception):  # noqa: N818  # no error
        pass

    def measure(*args: object) -> None:
        raise Measured

    monkeypatch.setattr(gpu, "memory_alone", measure)
    with pytest.raises(Measured):
        gpu.measure(tone_pack(), quick=True, with_profile=False)


def test_without_a_gpu_its_bench_says_so_and_gives_no_figures() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    said, figures = done.stdout.splitlines()
    assert "No GPU" in said
    assert json.loads(figures) == {"device": None}
