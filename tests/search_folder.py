"""A folder with tiny clips and a space file, the commands that search there, what they leave."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from optuna.trial import FrozenTrial

from search.storages import JOURNAL
from tests.audio_fixtures import write_dcase2020
from tests.integration.conftest import TWO_SLOTS
from tests.invariant import open_journal, stored_runs, stored_trials
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
DEADLINE_S = 480.0  # of a machine that is busy with something else
PARAMETERS = """
parameters:
  network.channels: {kind: int, low: 2, high: 4}
  network.depth: {kind: fixed, value: 3}
  network.attention: {kind: bool}
  network.attention_expansion: {kind: fixed, value: 1, when: {network.attention: true}}
  frontend.n_fft: {kind: fixed, value: 64}
  frontend.hop: {kind: fixed, value: 64}
  frontend.n_frames: {kind: fixed, value: 8}
  train.lr: {kind: float, low: 1e-3, high: 1e-2, log: true}
  train.precision: {kind: fixed, value: fp32}
"""


@dataclass(frozen=True)
class Snapshot:
    """What a command left in its three places."""

    exit_code: int
    stdout: str
    stderr: str
    trials: Mapping[str, list[FrozenTrial]]
    runs: list[Run]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])

    def ended(self) -> list[tuple[str, FrozenTrial]]:
        return [(name, t) for name, ts in self.trials.items() for t in ts if t.state.is_finished()]


class Folder:
    """Where a story happens: the command, and what it leaves behind.

    Args:
        home: Empty.
        empty_store: MLflow's, to be copied.
        space: The space file but for its parameters.
        types: Machine types that there are clips of.
    """

    def __init__(self, home: Path, empty_store: Path, space: str, types: Sequence[str]) -> None:
        self.home, self.out = home, home / "runs"
        self.out.mkdir()
        self.tracking_uri = f"sqlite:///{shutil.copy(empty_store, self.out / 'mlflow.db')}"
        self.marker = f"MIMIMI_TEST={uuid.uuid4()}"
        for machine_type in types:
            write_dcase2020(home / "data", machine_type, n_train=4, n_test=6)
        (home / "tiny.yaml").write_text(space + PARAMETERS)
        options = ["--space", home / "tiny.yaml", "--data", home / "data", "--out", self.out]
        self.options = [*map(str, options), "--study", "s"]
        self.program = ["search.run"]

    @contextmanager
    def running(
        self, *options: str, environment: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        name, _, value = self.marker.partition("=")
        environment = {**os.environ, **TWO_SLOTS, name: value, **(environment or {})}
        environment.pop("RAY_ADDRESS", None)
        process = subprocess.Popen(
            [sys.executable, "-m", *self.program, *self.options, *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def run(
        self,
        *options: str,
        meanwhile: Callable[[subprocess.Popen[str]], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Snapshot:
        with self.running(*options, environment=environment) as process:
            if meanwhile:
                meanwhile(process)
            stdout, stderr = process.communicate(timeout=DEADLINE_S)
        return Snapshot(process.returncode, stdout, stderr, self.trials(), self.runs())

    def trials(self) -> dict[str, list[FrozenTrial]]:
        return stored_trials(open_journal(self.out, "s"), "s")

    def runs(self) -> list[Run]:
        return stored_runs(self.tracking_uri, "s")

    def wait_for_ended(self, process: subprocess.Popen[str], n_trials: int) -> None:
        journal, size = self.out / "s" / JOURNAL, 0

        def is_there() -> bool:
            nonlocal size
            assert process.poll() is None, "the search ended before it could be disturbed"
            if not journal.exists() or journal.stat().st_size == size:
                return False
            size = journal.stat().st_size
            ended = [t for ts in self.trials().values() for t in ts if t.state.is_finished()]
            return len(ended) >= n_trials

        wait_until(is_there)

    def has_workers(self) -> bool:
        """Whether Ray still runs something for us; two idle agents of its own stay for a minute."""
        return any(b"Agent" not in command for command in self.processes().values())

    def processes(self) -> dict[int, bytes]:
        """Command line of whatever a command of this story started and is still there."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.marker.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = (process / "cmdline").read_bytes()
            except OSError:  # it ended, or is somebody else's
                continue
        return found
