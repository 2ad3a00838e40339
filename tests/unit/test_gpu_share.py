"""How many trials share a GPU: the arithmetic, and what is measured, as far as a CPU can tell."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mimimi_core.config import ConfigError, TrialConfig
from mimimi_core.costs import train_gib
from mimimi_core.scoring import WINDOWS_PER_BATCH
from mimimi_core.training import Training
from search import gpu_share
from search.config import SpaceFile
from search.fresh_seeds import seeds_at_once
from search.gpu_share import Memory, dearest, hold_most, memory_of, share_of_gpu
from search.shared_files import SharedFiles
from tests.model_fixtures import AUGMENT_ALL, CPU, tiny_config, tone_pack

GIB = 2**30


def space(constraints: dict[str, Any] | None = None, **parameters: Any) -> SpaceFile:
    of_frontend = {"frontend.n_fft": 64, "frontend.hop": 32, "frontend.n_frames": 16}
    small = {"network.depth": 3, **of_frontend}
    fixed = {name: {"kind": "fixed", "value": value} for name, value in small.items()}
    study = {"trials": 1, "epochs": 1}
    return SpaceFile.model_validate(
        {"study": study, "constraints": constraints or {}, "parameters": fixed | parameters}
    )


CHANNELS = {"kind": "int", "low": 2, "high": 4096, "log": True}


@pytest.mark.parametrize(
    ("needed", "total", "n"),
    [
        (1.0, 80.0, 8),  # no more, however small
        (9.0, 80.0, 8),
        (9.1, 80.0, 7),  # 72 GiB are to be had
        (24.0, 80.0, 3),
        (36.1, 80.0, 1),
        (79.0, 80.0, 1),  # it ran, so one fits
        (3.0, 16.0, 4),
    ],
)
def test_as_many_share_a_gpu_as_fit_into_nine_tenths_of_it(
    needed: float, total: float, n: int
) -> None:
    memory = Memory(int(needed * GIB), int(total * GIB))
    assert memory.n_trials == n


def test_the_dearest_configuration_is_found_at_the_ends_of_the_ranges() -> None:
    wide = space(
        **{
            "network.channels": CHANNELS | {"high": 64},
            "network.attention": {"kind": "bool"},
            "train.batch_size": {"kind": "categorical", "choices": [64, 8, 16]},
        }
    )
    config = dearest(wide, n_ids=3)
    assert (config.network.channels, config.train.batch_size) == (64, 64)
    assert config.network.attention
    assert config.frontend.n_fft == 64


def test_what_may_not_be_trained_is_not_measured() -> None:
    limit = 0.02
    config = dearest(space({"train_gib": limit}, **{"network.channels": CHANNELS}), n_ids=3)
    assert limit / 20 < train_gib(config, 3) <= limit
    free = dearest(space(**{"network.channels": CHANNELS}), n_ids=3)
    assert free.network.channels == 4096


def test_a_space_in_which_nothing_fits_has_no_dearest() -> None:
    with pytest.raises(ConfigError, match="none of 8 configurations fits"):
        dearest(space(**{"frontend.n_frames": {"kind": "fixed", "value": 1}}), n_ids=3)


def test_systems_that_are_not_trained_by_steps_have_a_dearest_too() -> None:
    kind = {"kind": "categorical", "choices": ["mahalanobis", "nearest_neighbour"]}
    parameters = {"network.kind": kind, "frontend.kind": {"kind": "fixed", "value": "logmel"}}
    study = {"trials": 1, "epochs": 1}
    closed_form = SpaceFile.model_validate({"study": study, "parameters": parameters})
    assert train_gib(dearest(closed_form, n_ids=3), 3) == 0.0


def test_a_whole_batch_of_windows_is_scored_however_short_the_clips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_scored = []
    monkeypatch.setattr(Training, "scores", lambda self, clips: n_scored.append(len(clips)))
    pack = tone_pack(n_train=40)
    hold_most(tiny_config(), pack, CPU)
    assert n_scored == [min(WINDOWS_PER_BATCH, len(pack.names))]


def test_who_waits_for_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    caplog.set_level(logging.INFO, "search.gpu_share")
    task = SimpleNamespace(remote=lambda *args: None)
    ray = SimpleNamespace(
        remote=lambda **_: lambda _: task, get=lambda task: said.extend(caplog.messages)
    )
    monkeypatch.setattr(gpu_share, "ray", ray)
    gpu_share._on_the_cluster(tiny_config(), "root", "pack")
    assert said == ["waiting for a free GPU, to measure what a trial needs of it"]


def test_a_training_steps_twice_and_scores() -> None:
    pack = tone_pack(n_train=40)
    training = hold_most(tiny_config(AUGMENT_ALL), pack, CPU)
    steps = {float(state["step"]) for state in training.optimizer.state.values()}
    assert steps == {2.0}
    hold_most(tiny_config(lr=1e30), pack, CPU)  # its scores are no numbers
    short = hold_most(tiny_config(batch_size=32), tone_pack(n_train=2), CPU)  # 4 clips in all
    assert short.epoch == 0


def test_context_and_slack_count_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 12 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    found = memory_of(tiny_config(), tone_pack(), CPU)
    assert found == Memory(needed=(1 + 12) * GIB, total=80 * GIB, name="a GPU")


def test_the_largest_pack_is_measured_and_told_in_one_line(caplog: Any, tmp_path: Path) -> None:
    packs = {"fan": tone_pack(n_ids=2), "pump": tone_pack(n_ids=5)}
    asked = []

    def measure(config: TrialConfig, root: str, pack: str) -> Memory:
        asked.append((config, root, pack))
        return Memory(20 * GIB, 80 * GIB, "a GPU")

    caplog.set_level(logging.INFO, "search.gpu_share")
    shared = {"fan": "fan.arrow", "pump": "pump.arrow"}
    small = space(**{"network.channels": CHANNELS | {"high": 8}})
    share = share_of_gpu(small, packs, shared, SharedFiles(tmp_path), measure)
    assert share == 0.3333
    ((config, root, pack),) = asked
    assert (config.network.channels, root, pack) == (8, str(tmp_path), "pump.arrow")
    assert [record.getMessage() for record in caplog.records] == [
        "a trial needs up to 20.00 of the 80.0 GiB of a GPU (measured with 8 channels, batches "
        "of 32): 3 share one"
    ]


def test_without_a_measurement_a_trial_gets_a_whole_gpu(caplog: Any, tmp_path: Path) -> None:
    def measure(*args: Any) -> Memory:
        raise RuntimeError("Traceback:\n  somewhere\nAssertionError: no driver")

    found = share_of_gpu(
        space(**{"network.channels": CHANNELS | {"high": 8}}),
        {"fan": tone_pack()},
        {"fan": "fan.arrow"},
        SharedFiles(tmp_path),
        measure,
    )
    assert found == 1.0
    (record,) = caplog.records
    assert record.getMessage().endswith("memory was not measured: AssertionError: no driver")


@pytest.mark.parametrize("n", range(1, 9))
def test_ray_fits_as_many_shares_into_a_gpu_as_were_meant(n: int, tmp_path: Path) -> None:
    memory = Memory(needed=GIB, total=int(n * GIB / 0.9) + 1)
    packs, shared = {"fan": tone_pack()}, {"fan": "fan.arrow"}
    share = share_of_gpu(space(), packs, shared, SharedFiles(tmp_path), lambda *args: memory)
    assert share == round(share, 4)
    assert n * share <= 1 < (n + 1) * share
    assert seeds_at_once("auto", share, {}) == (n if n > 1 else sys.maxsize)
