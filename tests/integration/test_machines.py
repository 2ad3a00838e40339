"""A search on a cluster of a head alone, with Ray's own autoscaler: it grows, and is let go.

The machines are processes of this one (Ray's provider for its own tests).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._raylet import GcsClient
from ray.exceptions import RaySystemError

from search import machines
from tests.audio_fixtures import write_dcase2020
from tests.invariant import check_invariant, open_journal, stored_trials
from tests.study_fixtures import new_study
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
N_TRIALS, MOST_MACHINES = 12, 2
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # `ray start` would want one where ~/.ray holds one
SPACE = f"""
study: {{trials: {N_TRIALS}, epochs: 3}}
scheduler: {{name: none}}
confirmation: {{top: 0}}
resources: {{cpu: 1}}
parameters:
  network.channels: {{kind: int, low: 2, high: 4}}
  network.depth: {{kind: fixed, value: 3}}
  frontend.n_fft: {{kind: fixed, value: 64}}
  frontend.hop: {{kind: fixed, value: 64}}
  frontend.n_frames: {{kind: fixed, value: 8}}
  train.precision: {{kind: fixed, value: fp32}}
"""


class Head:
    """A Ray head that trains nothing, and the machines that its autoscaler adds."""

    def __init__(self, folder: Path) -> None:
        self._marker = uuid.uuid4().hex
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = folder / "machines.yaml"
        config.write_text(yaml.safe_dump(_autoscaling(self.address)))
        host, _, port = self.address.partition(":")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--node-ip-address", host, "--port", port, "--num-cpus", "0"]
        command += ["--include-dashboard", "false", "--temp-dir", str(folder)]
        command += ["--autoscaling-config", str(config)]
        self.log = folder / "head.log"
        fast = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        quiet = NO_TOKEN | {"RAY_USAGE_STATS_ENABLED": "0", "MIMIMI_TEST": self._marker}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | fast | quiet,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._answers)
            self._gcs = GcsClient(address=self.address)
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        host, _, port = self.address.partition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def wish(self) -> list[dict[str, float]] | None:
        """What the autoscaler was last asked for; None if never for anything."""
        told = self._gcs.internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL, None, timeout=30)
        return None if told is None else json.loads(told)

    def n_machines(self) -> int:
        """How many it has added and not ended."""
        alive = [n for n in self._gcs.get_all_node_info(timeout=30).values() if n.state == 0]
        return len(alive) - 1

    def stop(self) -> None:
        """End whatever has come of it."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("MIMIMI_TEST") == self._marker:
                    process.kill()
            except psutil.Error:  # it ended, or is somebody else's
                continue
        self._process.wait()


def _autoscaling(address: str) -> dict[str, Any]:
    """As `ray up` would have it; a machine that is idle goes after some seconds."""
    types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": MOST_MACHINES,
        },
    }
    lists = (
        *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
        *("setup_commands", "head_setup_commands", "worker_setup_commands"),
        *("head_start_ray_commands", "worker_start_ray_commands"),
    )
    return {
        "cluster_name": "fake",
        "max_workers": MOST_MACHINES,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "disable_node_updaters": True,
            "use_node_id_as_ip": True,  # all have the same, so none would be known
        },
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        **{name: [] for name in lists},
    }


@dataclass(frozen=True)
class Story:
    """A search that was killed when its first trial had ended, and the same command again."""

    out: Path
    before: dict[str, Any]
    wish: list[dict[str, float]] | None  # when it was killed
    summary: dict[str, Any]
    most_machines: int


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp())  # pytest's own are too long for Ray's sockets
    made = Head(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, head: Head) -> Story:
    home = tmp_path_factory.mktemp("story")
    write_dcase2020(home / "data", n_train=4, n_test=6)
    (home / "tiny.yaml").write_text(SPACE)
    out = home / "runs"
    out.mkdir()
    shutil.copy(empty_store, out / "mlflow.db")
    command = [sys.executable, "-m", "search.run", "--space", home / "tiny.yaml", "--study", "s"]
    command += ["--data", home / "data", "--out", out, "--address", head.address]
    errors = home / "stderr"

    @contextmanager
    def running() -> Iterator[subprocess.Popen[str]]:
        with (
            errors.open("w") as log,
            subprocess.Popen(
                [*map(str, command)],
                cwd=ROOT,
                env=os.environ | NO_TOKEN,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as driver,
        ):
            try:
                yield driver
            finally:
                driver.kill()

    def has_ended_one() -> bool:
        assert driver.poll() is None, errors.read_text()
        if not (out / "s" / "optuna.journal").exists():
            return False
        trials = stored_trials(open_journal(out, "s"), "s").get("fan", [])
        return any(trial.state.is_finished() for trial in trials)

    with running() as driver:
        wait_until(has_ended_one)
        wish = head.wish()
        driver.kill()
    before = stored_trials(open_journal(out, "s"), "s")
    wait_until(lambda: head.wish() == [])
    wait_until(lambda: head.n_machines() == 0)

    most_machines = 0

    def is_over() -> bool:
        nonlocal most_machines
        most_machines = max(most_machines, head.n_machines())
        return driver.poll() is not None

    with running() as driver:
        wait_until(is_over)
        assert driver.returncode == 0, errors.read_text()
        assert driver.stdout
        summary = json.loads(driver.stdout.read().splitlines()[-1])
    return Story(out, before, wish, summary, most_machines)


def test_what_is_left_is_wished_for(story: Story) -> None:
    left = N_TRIALS - sum(trial.state.is_finished() for trial in story.before["fan"])
    assert story.wish
    assert story.wish[0] == {"CPU": 1.0}
    assert left <= len(story.wish) <= N_TRIALS  # more may have ended before it was killed


def test_a_search_that_is_killed_is_finished_on_new_machines(story: Story) -> None:
    """That its wish went with it, and the machines with the wish, the story waits for."""
    assert story.most_machines == MOST_MACHINES
    check_invariant(
        story.summary, open_journal(story.out, "s"), asked=N_TRIALS, earlier=story.before
    )


def test_machines_go_when_the_search_has_ended(story: Story, head: Head) -> None:
    assert head.wish() == []
    wait_until(lambda: head.n_machines() == 0)


def test_a_wish_that_cannot_be_made_ends_no_search(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(bundles: list[dict[str, float]]) -> None:
        raise RaySystemError("the head is away")

    monkeypatch.setattr(machines, "request_resources", refuse)
    machines.Wish({"fan": new_study()}, 8, None, {"cpu": 1.0, "gpu": 0.0}).make()
    assert "room for 8 trials: System error: the head is away" in caplog.text
