"""Fresh seeds in one task: each ends, is stored and is noted as in a task of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mimimi_core import fused
from mimimi_core.clips import find_clips
from mimimi_core.pack import pack_clips
from mimimi_core.training import Training
from search import fresh_seeds, trainable
from search.fresh_seeds import gpu_of, seeds_at_once, train_seeds
from search.shared_files import SharedFilesError
from tests.audio_fixtures import write_dcase2020
from tests.model_fixtures import TINY_PARAMS

EPOCHS = 3
SEEDS = (11, 12, 13)
DEEP: dict[str, Any] = {
    **TINY_PARAMS,
    "train.epochs": EPOCHS,
}
ALWAYS = {"hang_s": 600.0, "gpu": 0.0}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return pack_clips(find_clips(write_dcase2020(folder, n_train=4, n_test=4))["fan"], folder)


def configs(pack: Path, folder: Path, **params: Any) -> list[dict[str, Any]]:
    """Of each seed, its checkpoint below `folder`."""
    return [
        {
            "params": DEEP | params | {"train.seed": seed},
            "objective": "val_auc",
            "files": str(folder),
            "pack": str(pack),
            "checkpoint": str(folder / str(seed)),
            "threads": 1,
        }
        for seed in SEEDS
    ]


@pytest.mark.parametrize(
    ("mode", "gpu", "n"),
    [
        ("auto", 0.0, 1),
        ("auto", 0.25, 4),
        ("auto", 1 / 3, 3),
        ("auto", 0.1, 10),
        ("auto", 0.6, 1),  # two would not have fitted onto a GPU either
        (False, 1.0, 1),
        (False, 0.25, 1),
    ],
)
def test_where_there_is_a_gpu_as_many_are_fused_as_shared_it(mode: Any, gpu: float, n: int) -> None:
    assert seeds_at_once(mode, gpu, DEEP) == n


@pytest.mark.parametrize(("mode", "gpu"), [("auto", 1.0), ("auto", 2.0), (True, 0.0)])
def test_a_whole_gpu_and_a_cpu_take_all(mode: Any, gpu: float) -> None:
    assert seeds_at_once(mode, gpu, DEEP) > 1000


def test_what_cannot_be_fused_is_not() -> None:
    params = {"frontend.kind": "logmel", "network.kind": "mahalanobis"}
    assert seeds_at_once(True, 0.25, params) == 1


def test_a_task_holds_what_its_seeds_would_have() -> None:
    assert [gpu_of(n, 0.25) for n in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert gpu_of(3, 1 / 3) == pytest.approx(1)
    assert [gpu_of(n, gpu) for n, gpu in ((3, 0.0), (3, 1.0), (3, 2.0))] == [0, 1, 2]


def test_together_they_reach_what_each_reaches_alone(pack: Path, tmp_path: Path) -> None:
    alone = [train_seeds([c], **ALWAYS)[0] for c in configs(pack, tmp_path / "alone")]
    together = train_seeds(configs(pack, tmp_path / "together"), **ALWAYS)
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.keys() == theirs.keys() == {"objective", "metrics", "seconds"}
        assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4)
        assert mine["objective"] == mine["metrics"]["val_auc"]
    assert len({note["metrics"]["train_loss"] for note in together}) == len(SEEDS)
    again = train_seeds(configs(pack, tmp_path / "together"), **ALWAYS)  # all are done
    assert [x["metrics"] for x in again] == [x["metrics"] for x in together]


@pytest.mark.parametrize(("gpu", "share"), [(0.0, 1 / 3), (0.25, 1), (0.5, 2 / 3), (1.0, 1 / 3)])
def test_all_seeds_together_cost_what_their_task_held(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: float, share: float
) -> None:
    ticks = iter((100.0, 160.0))

    class Clock:
        perf_counter = staticmethod(lambda: next(ticks))

    monkeypatch.setattr(fresh_seeds, "time", Clock)
    notes = train_seeds(configs(pack, tmp_path), hang_s=600.0, gpu=gpu)
    assert [note["seconds"] for note in notes] == pytest.approx(3 * [60 * share])


def test_a_seed_that_fails_does_so_alone(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = trainable.open_training

    def spoil(config: dict[str, Any], *args: Any) -> Any:
        if config["params"]["train.seed"] == SEEDS[0]:
            raise ValueError("unreadable")
        training, metrics = opened(config, *args)
        if config["params"]["train.seed"] == SEEDS[1]:
            with torch.no_grad():
                training.network.total_conv.bias.fill_(torch.nan)
        return training, metrics

    monkeypatch.setattr(fresh_seeds, "open_training", spoil)
    first, second, third = train_seeds(configs(pack, tmp_path), **ALWAYS)
    assert first["failure"].startswith("crash: ValueError: unreadable")
    assert second["failure"].startswith("non-finite: train_loss is nan in epoch 1")
    assert not (tmp_path / str(SEEDS[1])).exists()
    assert third.keys() == {"objective", "metrics", "seconds"}


def test_what_others_reached_is_kept_where_memory_does_not_suffice_for_one(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Training.train_steps

    def refuse(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def refuse_the_last(training: Training) -> torch.Tensor:
        if training.config.train.seed == SEEDS[2]:
            refuse()
        return steps(training)

    monkeypatch.setattr(fused, "functional_call", refuse)  # so that they take turns
    monkeypatch.setattr(Training, "train_steps", refuse_the_last)
    first, second, third = train_seeds(configs(pack, tmp_path), **ALWAYS)
    for note in (first, second):
        assert note.keys() == {"objective", "metrics", "seconds"}
    assert third == {"failure": "out of memory: CUDA out of memory"}


def test_a_worker_that_was_lost_between_two_checkpoints_goes_on(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train_seeds(configs(pack, tmp_path / "whole"), **ALWAYS)
    saved = 0

    def save(training: Any, metrics: Any, config: Any) -> None:
        nonlocal saved
        saved += 1
        if saved == 5:  # the second seed's in the second epoch
            raise KeyboardInterrupt
        trainable.save_training(training, metrics, config)

    groups: list[list[int]] = []

    def run_epoch(trainings: Any) -> Any:
        groups.append([training.epoch for training in trainings])
        return fused.run_epoch(trainings)

    monkeypatch.setattr(fresh_seeds, "save_training", save)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(configs(pack, tmp_path / "broken"), **ALWAYS)
    monkeypatch.setattr(fresh_seeds, "run_epoch", run_epoch)
    found = train_seeds(configs(pack, tmp_path / "broken"), **ALWAYS)
    assert groups == [[1, 1], [2, 2, 2]]
    for mine, theirs in zip(found, undisturbed, strict=True):
        assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4)


def test_storage_that_refuses_is_no_failure_of_a_seed(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise SharedFilesError("the disk is full")

    monkeypatch.setattr(fresh_seeds, "save_training", refuse)
    with pytest.raises(SharedFilesError, match="the disk is full"):
        train_seeds(configs(pack, tmp_path), **ALWAYS)


def test_a_broken_device_is_no_failure_of_a_seed(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: launch failure")

    monkeypatch.setattr(fresh_seeds, "run_epoch", broken)
    with pytest.raises(torch.AcceleratorError, match="launch failure"):
        train_seeds(configs(pack, tmp_path), **ALWAYS)


def test_the_alarm_gives_an_epoch_of_several_the_time_of_all(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    @contextmanager
    def alarm(limit_s: float) -> Iterator[None]:
        limits.append(limit_s)
        yield

    monkeypatch.setattr(fresh_seeds, "alarm", alarm)
    train_seeds(configs(pack, tmp_path), hang_s=60.0, gpu=0.0)
    assert limits == EPOCHS * [180.0]


def test_on_one_device_the_clips_lie_once(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = []

    def run_epoch(trainings: Any) -> Any:
        crops.append({id(training.batches.crops) for training in trainings})
        return fused.run_epoch(trainings)

    monkeypatch.setattr(fresh_seeds, "run_epoch", run_epoch)
    train_seeds(configs(pack, tmp_path), **ALWAYS)
    assert [len(found) for found in crops] == EPOCHS * [1]
