"""The confirmation on a real Ray, its seeds in tasks of their own or fused: the same winner."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import TrialState

from mimimi_core.clips import find_clips
from mimimi_core.pack import pack_clips
from search import confirmation
from search.config import SpaceFile
from search.confirmation import confirm, find_winner
from search.failures import WORKER_RETRIES
from search.shared_files import SharedFiles
from search.storages import open_storage
from search.studies import TypeStudy
from tests.audio_fixtures import write_dcase2020
from tests.model_fixtures import TINY_PARAMS
from tests.study_fixtures import new_study

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

LR = {"kind": "float", "low": 1e-3, "high": 1e-2, "log": True}


def space(fused: bool | str) -> SpaceFile:
    parameters = {name: {"kind": "fixed", "value": value} for name, value in TINY_PARAMS.items()}
    return SpaceFile.model_validate(
        {
            "study": {"trials": 2, "epochs": 3},
            "confirmation": {"top": 2, "seeds": 3, "fused": fused},
            "parameters": parameters | {"train.lr": LR},
        }
    )


@contextmanager
def searched(folder: Path, space: SpaceFile) -> Iterator[TypeStudy]:
    """A study whose two trials ended."""
    with open_storage(folder) as storage:
        study = new_study(storage, space=space)
        for value in (0.6, 0.7):
            number = study.ask().number
            study.record_epoch(number, 1, {"seconds": 1.0}, value)
            study.finish(number, TrialState.COMPLETE, value=value)
        yield study


def run(study: TypeStudy, space: SpaceFile, folder: Path, pack: Path) -> dict[Any, dict[str, Any]]:
    files = SharedFiles(folder.parent)
    resources = {"cpu": 1.0, "gpu": 0.0}
    packs = {"fan": str(pack)}
    confirm({"fan": study}, space, folder=folder, packs=packs, resources=resources, files=files)
    return {(n, i): study.noted(f"confirmation/{n}/{i}") for n in range(2) for i in range(3)}


def test_fused_seeds_are_noted_stored_and_continued_like_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "search.confirmation")
    pack = pack_clips(find_clips(write_dcase2020(tmp_path, n_train=6, n_test=8))["fan"], tmp_path)
    notes, winners = {}, {}
    for mode in (False, True):
        folder = tmp_path / f"fused-{mode}"
        with searched(folder, space(mode)) as study:
            study.note("confirmation/1/1", {"failure": "crash: of an earlier run"})
            caplog.clear()
            notes[mode] = run(study, space(mode), folder, pack)
            first, *others = caplog.messages
            assert first == "confirming the best trials: 5 trainings with fresh seeds"
            counts = [f"({n} of 5 trainings, " for n in range(1, 6)]
            assert [count in said for count, said in zip(counts, others, strict=True)] == [True] * 5
            assert others[-1].endswith(", 0 s left)")
            caplog.clear()
            winners[mode] = find_winner(study, space(mode), folder)
            again = run(study, space(mode), folder, pack)
            assert again == notes[mode]  # nothing is left to be done
            assert not caplog.messages
        stored = sorted(path.parent.name for path in folder.glob("confirmation/fan/*/state.pt"))
        assert stored == ["00000-0", "00000-1", "00000-2", "00001-0", "00001-2"]
    for key, note in notes[True].items():
        other = notes[False][key]
        assert note.keys() == other.keys()
        if key != (1, 1):
            assert note["metrics"] == pytest.approx(other["metrics"], rel=1e-4)
            assert note["seconds"] > 0
    assert winners[True].number == winners[False].number == 0  # the other has failed once
    assert winners[True].mean == pytest.approx(winners[False].mean)
    assert winners[True].mean == pytest.approx(
        np.mean([notes[True][0, index]["objective"] for index in range(3)])
    )
    seconds = [notes[True][0, index]["seconds"] for index in range(3)]
    assert math.isclose(max(seconds), min(seconds))  # they shared a task


def test_a_broken_device_is_tried_again_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is raised by hand, on no GPU."""
    told = tmp_path / "told"

    def broken(configs: Sequence[dict[str, Any]], **_: float) -> None:
        with told.open("a") as file:
            file.write(f"{configs[0]['checkpoint']}\n")
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(confirmation, "train_seeds", broken)
    with searched(tmp_path / "s", space(False)) as study:
        notes = run(study, space(False), tmp_path / "s", tmp_path / "unread")
    assert len(told.read_text().split()) == 6 * (1 + WORKER_RETRIES)
    assert {note["failure"] for note in notes.values()} == {
        "worker lost: AcceleratorError: CUDA error: an illegal memory access was encountered"
    }
