"""A disk fills up during a search, and there is room again: nothing is lost."""

import threading
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial

from mimimi_core.clips import find_clips
from mimimi_core.pack import pack_clips
from search.launch import run_trials
from search.storages import open_storage
from search.trainable import CHECKPOINT
from tests.analytic_search import searching
from tests.audio_fixtures import write_dcase2020
from tests.doubles import space_file
from tests.invariant import check_trials, open_journal, stored_trials
from tests.small_disk import SmallDisk, small_disk
from tests.study_fixtures import new_study
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PARAMETERS = {
    "network.channels": {"kind": "int", "low": 2, "high": 4},
    "network.depth": {"kind": "fixed", "value": 3},
    "frontend.n_frames": {"kind": "fixed", "value": 8},
    "frontend.n_fft": {"kind": "fixed", "value": 64},
    "frontend.hop": {"kind": "fixed", "value": 64},
}


class RoomLater:
    """Makes room a second after the first epoch that could not be stored was reported."""

    def __init__(self, disk: SmallDisk) -> None:
        self._disk = disk
        self.was_empty = False
        self.thread: threading.Thread | None = None

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        if trial.intermediate_values and self.thread is None:
            self.was_empty = not list(self._disk.place.rglob(CHECKPOINT))
            self.thread = threading.Timer(1.0, self._disk.make_room)
            self.thread.start()


@pytest.mark.usefixtures("ray_cluster")
def test_checkpoints_wait_for_room(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    clips = find_clips(write_dcase2020(tmp_path / "data", n_test=8))["fan"]
    space = space_file(trials=2, epochs=2, scheduler={"name": "none"}, parameters=PARAMETERS)
    with small_disk(folder / "checkpoints") as disk, open_storage(folder) as storage:
        disk.fill()
        later, study = RoomLater(disk), new_study(storage, space=space)
        run_trials(
            {"fan": study},
            space,
            folder=folder,
            packs={"fan": str(pack_clips(clips, tmp_path))},
            resources={"cpu": 2.0, "gpu": 0.0},
            observers=(later,),
        )
        assert later.was_empty
        assert len(list(disk.place.rglob(CHECKPOINT))) == 2
        check_trials({"fan": list(study.trials())}, asked=2)
        assert [trial.user_attrs.get("attempts", 1) for trial in study.trials()] == [1, 1]


def test_a_journal_without_room_ends_the_search_and_nothing_is_lost(
    tmp_path: Path, ray_cluster: str
) -> None:
    options = {"trials": 12, "step_s": 0.3, "address": ray_cluster}
    with small_disk(tmp_path / "disk") as disk:
        folder = disk.place / "s"

        def ended() -> list[FrozenTrial]:
            if not folder.exists():
                return []
            found = stored_trials(open_journal(disk.place, "s"), "s").get("fan", [])
            return [trial for trial in found if trial.state.is_finished()]

        with searching(folder, options | {"is_patient": False}) as search:
            wait_until(lambda: len(ended()) >= 3)
            disk.fill()
            _, stderr = search.communicate(timeout=120)
        assert search.returncode == 1, stderr
        assert "make room and repeat the command" in stderr.splitlines()[-1]
        assert "Traceback" not in stderr
        before = stored_trials(open_journal(disk.place, "s"), "s")
        assert len(before["fan"]) < 12
        disk.make_room()
        with searching(folder, options) as search:
            _, stderr = search.communicate(timeout=240)
        assert search.returncode == 0, stderr
        check_trials(stored_trials(open_journal(disk.place, "s"), "s"), asked=12, earlier=before)
