"""A disk fills up during a whole search, and there is room again: nothing is lost.

On a disk of its own lies what a test is about. When it fills up, one trial has ended, two are in
their second epoch, and the others have not begun.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from search.trainable import CHECKPOINT
from tests.invariant import Trials, check_invariant, open_journal
from tests.small_disk import SmallDisk, small_disk
from tests.troubled_search import TroubledFolder, space_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

N_TRIALS = 5
WAITING = {1: "wait", 2: "wait"}


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path, ray_cluster: str) -> TroubledFolder:
    folder = TroubledFolder(tmp_path, empty_store, space_of(N_TRIALS), ["fan"])
    folder.options += ["--address", ray_cluster]
    return folder


@contextmanager
def filling_up(folder: TroubledFolder, disk: SmallDisk) -> Iterator[subprocess.Popen[str]]:
    """A search whose disk is full from then on."""
    n_before = len(folder.notes())
    waiting = [(str(number), 2) for number in WAITING]

    def are_waiting() -> bool:
        begun = [(note["who"], note["epoch"]) for note in folder.notes()[n_before:]]
        return all(each in begun for each in waiting)

    folder.hold()
    with folder.running() as search:
        wait_until(are_waiting)
        folder.wait_for_ended(search, 1)
        disk.fill()
        folder.let_go()
        yield search


def finish(folder: TroubledFolder, earlier: Trials) -> None:
    """Repeat the command: nothing is missing, also of what there was earlier."""
    folder.follow({})
    done = folder.run()
    assert done.exit_code == 0, done.stderr
    check(folder, done.summary, earlier)


def ended_in_one_line(search: subprocess.Popen[str], line: str) -> None:
    _, stderr = search.communicate(timeout=240)
    assert search.returncode == 1, stderr
    assert line in stderr.splitlines()[-1], stderr
    assert "Traceback" not in stderr


def check(folder: TroubledFolder, summary: dict[str, Any], earlier: Trials) -> None:
    check_invariant(summary, open_journal(folder.out, "s"), asked=N_TRIALS, earlier=earlier)
    assert summary["machine_types"]["fan"]["complete"] == N_TRIALS
    assert summary["machine_types"]["fan"]["promoted"]


def n_ended(trials: Trials) -> int:
    return sum(trial.state.is_finished() for trial in trials["fan"])


def test_checkpoints_wait_for_room_and_in_vain_end_the_search(
    folder: TroubledFolder, tmp_path: Path
) -> None:
    folder.follow(WAITING, is_patient=False)
    with small_disk(tmp_path / "disk", "8m") as disk:
        folder.options += ["--storage-path", str(disk.place)]
        with filling_up(folder, disk) as search:
            _, stderr = search.communicate(timeout=240)
        assert search.returncode == 1, stderr
        assert "No space left on device; mend it and repeat the command to continue" in stderr
        before = folder.trials()
        assert 0 < n_ended(before) < N_TRIALS
        assert folder.epochs(1)[:3] == [1, 2, 3]  # the second went unsaved, the last must not
        disk.make_room()

        folder.follow(WAITING)
        with filling_up(folder, disk) as search:
            wait_until(lambda: folder.epochs(1)[-1] == 3)
            with pytest.raises(subprocess.TimeoutExpired):
                search.wait(1.0)
            disk.make_room()
            stdout, stderr = search.communicate(timeout=240)
        assert search.returncode == 0, stderr
        check(folder, json.loads(stdout.splitlines()[-1]), before)
        assert folder.epochs(1).count(1) == 1  # each attempt went on from there
        assert len(list((disk.place / "s" / "checkpoints").rglob(CHECKPOINT))) == N_TRIALS


def test_a_journal_and_results_without_room_end_the_search(
    folder: TroubledFolder, tmp_path: Path
) -> None:
    folder.options += ["--storage-path", str(tmp_path / "elsewhere")]
    folder.follow(WAITING, is_patient=False)
    with small_disk(folder.out / "s", "16m") as disk:
        with filling_up(folder, disk) as search:
            ended_in_one_line(search, "what is written is safe: mend it and repeat the command")
        before = folder.trials()
        assert n_ended(before) < N_TRIALS
        disk.make_room()

        folder.follow({})
        with folder.running() as search:
            assert search.stderr
            for line in search.stderr:
                if "confirmed with fresh seed" in line:  # the network of the winner comes next
                    break
            disk.fill()
            ended_in_one_line(search, "and repeat the command: what is recorded is safe")
        assert n_ended(folder.trials()) == N_TRIALS
        disk.make_room()
        finish(folder, before)


def test_mlflow_without_room_is_filled_in_later(folder: TroubledFolder, tmp_path: Path) -> None:
    folder.follow(WAITING, is_patient=False)
    with small_disk(tmp_path / "disk", "16m") as disk:
        store, artifacts = disk.place / "mlflow.db", disk.place / "artifacts"
        shutil.move(folder.out / "mlflow.db", store)
        artifacts.mkdir()
        (folder.out / "artifacts").symlink_to(artifacts)
        folder.tracking_uri = f"sqlite:///{store}"
        folder.options += ["--tracking-uri", folder.tracking_uri]
        with filling_up(folder, disk) as search:
            _, stderr = search.communicate(timeout=240)
        assert search.returncode == 2, stderr
        refusal = f"{folder.tracking_uri}: "
        assert f"tracking fails, will be tried again: {refusal}database or disk is full" in stderr
        *_, last = stderr.splitlines()
        assert last.startswith(f"error: {refusal}[Errno 28] No space left on device")
        assert "Traceback" not in stderr
        before = folder.trials()
        assert n_ended(before) == N_TRIALS
        disk.make_room()
        told = {run.info.run_name for run in folder.runs() if run.info.status == "FINISHED"}
        assert "fan/1" not in told
        finish(folder, before)
        written = {path.name: path.read_bytes() for path in artifacts.rglob("evaluation/*/*")}
        own = (folder.out / "s" / "evaluation" / "fan").iterdir()
        assert written == {path.name: path.read_bytes() for path in own}
