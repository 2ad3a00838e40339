"""A full disk: nothing is left half-written, and what was there before stays."""

import json
import threading
from pathlib import Path

import pytest
import torch
from optuna.storages import JournalStorage
from optuna.trial import TrialState

from mimimi_core import checkpoint
from mimimi_core.clips import find_clips
from mimimi_core.detector import Detector
from mimimi_core.pack import pack_clips
from search.journal import Journal
from search.shared_files import PATIENCE_S, SharedFilesError
from search.storages import JOURNAL, open_storage
from search.studies import StorageLost, TypeStudy
from search.trainable import TrialRunner
from tests.audio_fixtures import write_dcase2020
from tests.model_fixtures import TINY_PARAMS, make_detector
from tests.small_disk import small_disk
from tests.store_fixtures import Clock
from tests.study_fixtures import new_study

EPOCHS = 3
PARAMS = {
    **TINY_PARAMS,
    "train.epochs": EPOCHS,
}


def fill_up_with_trials(study: TypeStudy) -> None:
    for _ in range(10_000):
        trial = study.ask()
        assert trial
        study.record_epoch(trial.number, 1, {"val_auc": 0.7}, 0.7)
        study.finish(trial.number, TrialState.COMPLETE, value=0.7)


def test_a_full_disk_leaves_whole_records_and_the_study_goes_on_when_there_is_room(
    tmp_path: Path, clock: Clock
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        folder, spare = disk.place / "s", disk.place / "spare"
        spare.write_bytes(bytes(8192))
        with open_storage(folder) as storage:
            study = new_study(storage)
            with pytest.raises(StorageLost, match=r"No space left .* mend it and repeat"):
                fill_up_with_trials(study)
            assert clock.now == PATIENCE_S
            n_trials = len(study.trials())
            assert n_trials > 3
            spare.unlink()
            with pytest.raises(StorageLost):  # though there is room: a record is missing
                study.ask()
        lines = (folder / JOURNAL).read_text().splitlines()
        assert all(json.loads(line) for line in lines)

        # The next command finds all of it, and room elsewhere.
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / JOURNAL).write_bytes((folder / JOURNAL).read_bytes())
    with open_storage(tmp_path / "s") as storage:
        again = new_study(storage)
        assert len(again.trials()) == n_trials
        assert again.ask()


def test_who_makes_room_in_time_lets_the_writer_go_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        study = new_study(JournalStorage(Journal(disk.place / JOURNAL)))
        disk.fill()
        waits = threading.Thread(target=lambda: [study.note("key", "x" * 5000)], daemon=True)
        waits.start()
        waits.join(0.5)
        assert waits.is_alive()
        disk.make_room()
        waits.join(60)
        assert not waits.is_alive()
        assert study.noted("key") == "x" * 5000
        assert new_study(JournalStorage(Journal(disk.place / JOURNAL))).noted("key")


def test_a_checkpoint_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        path = disk.place / "state.pt"
        checkpoint.save({"weights": torch.ones(1000)}, path)
        disk.fill()
        with pytest.raises(OSError, match="No space left on device"):
            checkpoint.save({"weights": torch.zeros(20_000)}, path)
        assert sorted(p.name for p in disk.place.iterdir()) == ["ballast", "state.pt"]
        assert checkpoint.load(path)["weights"].sum() == 1000


def test_a_model_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        folder = disk.place / "fan"
        make_detector().save(folder)
        disk.fill()
        with pytest.raises(OSError, match="No space left on device"):
            make_detector(machine_ids=("id_06", "id_08")).save(folder)
        assert Detector.load(folder).machine_ids == make_detector().machine_ids


def test_a_trial_without_room_trains_on_and_is_given_up_at_its_end(
    tmp_path: Path, clock: Clock
) -> None:
    clips = find_clips(write_dcase2020(tmp_path / "data", n_test=8))["fan"]
    with small_disk(tmp_path / "disk", "2m") as disk:
        config = {
            "params": PARAMS,
            "objective": "val_auc",
            "files": str(disk.place),
            "pack": str(pack_clips(clips, tmp_path)),
            "checkpoint": str(disk.place / "s"),
            "threads": 1,
        }
        runner = TrialRunner(config)
        assert runner.step()["epoch"] == 1
        disk.fill()
        assert runner.step()["epoch"] == 2
        assert clock.pauses == []
        with pytest.raises(SharedFilesError, match=r"write .*state\.pt.* No space left on device"):
            runner.step()
        assert clock.now == PATIENCE_S

        disk.make_room()
        again = TrialRunner(config)  # on another node, or by the next command
        assert [again.step()["epoch"] for _ in range(EPOCHS)] == [1, 2, 3]
