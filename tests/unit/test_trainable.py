"""A trial on a worker whose storage or device fails it, and one that goes on on another worker."""

import errno
import gc
import io
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from mimimi_core.clips import find_clips
from mimimi_core.pack import pack_clips
from search import pack_cache, shared_files, trainable
from search.launch import worker_config
from search.shared_files import PATIENCE_S, SharedFiles, SharedFilesError
from search.trainable import CHECKPOINT, TrialRunner
from tests.audio_fixtures import write_dcase2020
from tests.doubles import space_file
from tests.model_fixtures import TINY_PARAMS
from tests.store_fixtures import Clock, Faulty
from tests.study_fixtures import new_study

EPOCHS = 3
PARAMS = {
    **TINY_PARAMS,
    "train.epochs": EPOCHS,
    "train.seed": 0,
}
FOR_EVER = 10**6


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    handler = Faulty()
    connected = (fs.PyFileSystem(handler), "bucket/prefix")
    monkeypatch.setattr(shared_files, "_connect", lambda root: connected)
    monkeypatch.setattr(pack_cache, "_checked", {})
    return handler


@pytest.fixture
def config(
    store: Faulty, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Of a trial whose pack is in the store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clips = find_clips(write_dcase2020(tmp_path / "data", n_train=4, n_test=4))["fan"]
    files = SharedFiles("s3://bucket/prefix")
    return {
        "params": PARAMS,
        "objective": "val_auc",
        "files": files.root,
        "pack": files.share(pack_clips(clips, tmp_path / "out" / "packs")),
        "checkpoint": files.name("s", "checkpoints", "fan", "00000"),
        "threads": 1,
    }


def test_a_trial_goes_on_elsewhere_from_its_last_epoch(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = TrialRunner({**config, "checkpoint": "other"})
    told = [undisturbed.step()["objective"] for _ in range(EPOCHS)]

    first = TrialRunner(config)
    assert [first.step()["epoch"] for _ in range(2)] == [1, 2]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another node"))
    second = TrialRunner(config)
    results = [second.step() for _ in range(2)]
    assert [result["epoch"] for result in results] == [2, 3]  # 2 again: its report may be lost
    assert [result["objective"] for result in results] == told[1:]
    assert results[-1]["is_final"]


@pytest.mark.parametrize("other", [{"train.seed": 1}, {"train.lr": 0.5}], ids=["seed", "rate"])
def test_a_trial_takes_over_no_checkpoint_of_another_study_that_had_its_name(
    config: dict[str, Any], other: dict[str, Any]
) -> None:
    mine = {**config, "params": PARAMS | other}
    undisturbed = TrialRunner({**mine, "checkpoint": "other"})
    told = [undisturbed.step()["objective"] for _ in range(EPOCHS)]

    gone = TrialRunner(config)
    assert [gone.step()["epoch"] for _ in range(EPOCHS)] == [1, 2, 3]
    runner = TrialRunner(mine)
    results = [runner.step() for _ in range(EPOCHS)]
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result["objective"] for result in results] == told
    assert TrialRunner(mine).step()["epoch"] == 3  # its own is in the place of the other


def test_a_trial_whose_checkpoint_is_cut_short_begins_anew(
    config: dict[str, Any], store: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    gone = TrialRunner(config)
    told = [gone.step()["objective"] for _ in range(EPOCHS)]
    name = f"/bucket/prefix/{config['checkpoint']}/{CHECKPOINT}"
    store.memory.pipe(name, store.memory.cat(name)[:100])
    runner = TrialRunner(config)
    results = [runner.step() for _ in range(EPOCHS)]
    assert [result.get("epoch") for result in results] == [1, 2, 3]
    assert [result["objective"] for result in results] == told
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("begins anew: ")
    assert TrialRunner(config).step()["epoch"] == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: CUDA out of memory"),
        (torch.AcceleratorError("CUDA error: launch failure"), None),  # ends the worker
    ],
)
def test_a_device_that_fails_while_a_state_is_restored_leaves_the_state_alone(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str | None
) -> None:
    """Raised by hand: no GPU was broken for it."""
    gone = TrialRunner(config)
    assert [gone.step()["epoch"] for _ in range(2)] == [1, 2]

    def fail(*args: Any, **options: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        if reason:
            assert TrialRunner(config).step()["failure"] == reason
        else:
            with pytest.raises(type(error), match="launch failure"):
                TrialRunner(config).step()
    assert TrialRunner(config).step()["epoch"] == 2


def test_memory_of_a_gpu_is_given_back_once_nothing_lives_of_the_trial_before(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TrialRunner(config)
    runner.step()
    assert runner._training
    parts = (runner._training, runner._training.network, runner._training.optimizer)
    before, n_alive = [weakref.ref(part) for part in parts], []
    del parts
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: n_alive.append(sum(x() is not None for x in before))
    )
    gc.disable()  # as if it came later
    try:
        runner.reset_config({**config, "checkpoint": "other"})
    finally:
        gc.enable()
    assert n_alive == [0]


@pytest.fixture
def in_a_folder(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The same trial, its files in a folder."""
    files = SharedFiles(tmp_path / "out")
    (pack,) = (tmp_path / "out" / "packs").iterdir()
    name = files.name("s", "checkpoints", "fan", "00000")
    return {**config, "files": files.root, "pack": str(pack), "checkpoint": name}


@pytest.mark.parametrize("refused", ["open", "stat"])
def test_a_folder_that_refuses_for_a_while_loses_no_epoch(
    in_a_folder: dict[str, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    gone = TrialRunner(in_a_folder)
    assert [gone.step()["epoch"] for _ in range(2)] == [1, 2]
    refuse_state(monkeypatch, refused, n=2)
    assert TrialRunner(in_a_folder).step()["epoch"] == 2
    assert clock.pauses == [1, 2]


@pytest.mark.parametrize("refused", ["open", "stat"])
def test_a_folder_that_refuses_for_good_is_an_error_of_the_worker(
    in_a_folder: dict[str, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    gone = TrialRunner(in_a_folder)
    gone.step()
    refuse_state(monkeypatch, refused, n=FOR_EVER)
    with pytest.raises(SharedFilesError, match=r"read .*state\.pt, but .* Stale file handle"):
        TrialRunner(in_a_folder).step()
    assert clock.now == PATIENCE_S


def refuse_state(monkeypatch: pytest.MonkeyPatch, doing: str, n: int) -> None:
    """Have the next `n` attempts to open a state, or to look for one, find its folder stale."""
    owner: Any = io if doing == "open" else os
    ask, left = getattr(owner, doing), [n]

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(CHECKPOINT) and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return ask(path, *args, **options)

    monkeypatch.setattr(owner, doing, refuse)


def test_a_store_that_refuses_for_a_while_costs_no_trial(
    config: dict[str, Any], store: Faulty, clock: Clock
) -> None:
    runner = TrialRunner(config)
    store.refusals["write"] = 2
    assert [runner.step()["epoch"] for _ in range(2)] == [1, 2]
    assert clock.pauses == []  # an epoch goes unsaved, and training goes on
    store.refusals["write"] = 3
    last = runner.step()
    assert (last["epoch"], last["is_final"]) == (3, True)
    assert clock.pauses == [1, 2, 4]
    assert TrialRunner(config).step()["epoch"] == 3  # it is there


@pytest.mark.parametrize("hang_minutes", [None, 2.0], ids=["patient", "soon taken to hang"])
@pytest.mark.parametrize("kind", ["read", "write", "look"])
def test_a_store_that_refuses_for_good_is_an_error_of_the_worker(
    kind: str, hang_minutes: float | None, config: dict[str, Any], store: Faulty, clock: Clock
) -> None:
    space = space_file(epochs=EPOCHS, study={"hang_minutes": hang_minutes})
    study = new_study(space=space)
    trial = study.ask()
    assert trial
    stated = worker_config(
        study,
        trial.number,
        space,
        {"cpu": 1.0},
        files=SharedFiles(config["files"]),
        pack=config["pack"],
        checkpoint=config["checkpoint"],
        seed=0,
    )
    config["patience_s"] = stated["patience_s"]
    store.refusals[kind] = FOR_EVER
    runner = TrialRunner(config)

    def train() -> None:
        for _ in range(EPOCHS):
            runner.step()

    with pytest.raises(SharedFilesError, match=r"s3://bucket/prefix must let this machine"):
        train()
    assert clock.now == (60 if hang_minutes else PATIENCE_S)


def test_a_folder_that_is_not_mounted_here_is_an_error_of_the_worker(
    clock: Clock, tmp_path: Path
) -> None:
    files = SharedFiles(tmp_path / "elsewhere")
    runner = TrialRunner(
        {
            "params": PARAMS,
            "objective": "val_auc",
            "files": files.root,
            "pack": files.name("packs", "fan-0123456789ab.arrow"),
            "checkpoint": files.name("s", "checkpoints", "fan", "00000"),
            "threads": 1,
        }
    )
    with pytest.raises(SharedFilesError, match=r"fan-0123456789ab\.arrow.* mount .*elsewhere on"):
        runner.step()
    assert clock.now == PATIENCE_S  # it may be mounted yet


def test_a_device_that_no_step_can_use_any_more_is_an_error_of_the_worker(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised by hand: no GPU was broken for it."""

    def fail(*args: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trainable, "open_training", fail)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        TrialRunner(config).step()


def test_memory_that_does_not_suffice_on_a_device_is_a_failure_of_the_trial(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(trainable, "open_training", fail)
    assert TrialRunner(config).step()["failure"].startswith("out of memory: CUDA out of memory")
