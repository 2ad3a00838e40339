"""`python -m search.run` as it is, but for what its workers do in the second epoch of some trials.

python -m tests.troubled_search '{"deeds": {"1": "leak"}, "notes": "FOLDER"}' --space ...

Its workers are Ray's, and what they run is the search's own but for `_prepare`, which comes first.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from search import confirmation, fresh_seeds, run, study, trainable
from search.launch import run_trials
from search.trainable import TrialRunner
from tests.search_folder import Folder

NOTES, GO = "notes.jsonl", "go"
CONFIRMATION = "confirmation"  # who does a deed: the number of a trial, or this for any fresh seed
_HOARD = 120, 50_000_000  # pieces, bytes: the most that is leaked


@dataclass(frozen=True)
class Plan:
    """What goes wrong.

    Args:
        notes: Folder, which all workers write to, of a line for each epoch that begins.
        deeds: Whose second epoch is special: "hang always" and, in the first attempt only, "hang
            once" never end it, in native code that keeps the interpreter's lock; "freeze once"
            stops its whole process; "leak" takes more and more memory; "wait" waits in it for a
            file `go` in that folder.
        is_patient: False lets all pauses for storage that refuses, and for MLflow at the end, be
            over at once.
    """

    notes: str
    deeds: Mapping[str, str] = field(default_factory=dict)
    is_patient: bool = True


def space_of(trials: int, study: str = "") -> str:
    """The space file of a search with one fresh seed at its end, but for its parameters.

    Args:
        trials: Of each machine type, all of three epochs.
        study: Further settings of the study, such as ", hang_minutes: 1".
    """
    return f"""
study: {{trials: {trials}, epochs: 3{study}}}
sampler: {{name: random}}
scheduler: {{name: none}}
confirmation: {{top: 1, seeds: 1}}
resources: {{cpu: 1}}
"""


class TroubledFolder(Folder):
    """Whose command follows a plan."""

    def follow(self, deeds: Mapping[int | str, str], *, is_patient: bool = True) -> None:
        """From the next command on."""
        plan = Plan(str(self.home), {str(who): deed for who, deed in deeds.items()}, is_patient)
        self.program = [__name__, json.dumps(asdict(plan))]

    def epochs(self, who: int | str) -> list[int]:
        """Epochs that a trial has begun, in order, those of all its attempts."""
        return [note["epoch"] for note in self.notes() if note["who"] == str(who)]

    def notes(self) -> list[dict[str, Any]]:
        path = self.home / NOTES
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def hold(self) -> None:
        """Have those wait who come to it."""
        (self.home / GO).unlink(missing_ok=True)

    def let_go(self) -> None:
        """End the waiting of whoever waits or comes to it."""
        (self.home / GO).touch()


def main(plan: Plan, options: Sequence[str]) -> int:
    """Search; the exit code."""

    class Runner(TrialRunner):
        def setup(self, config: dict[str, Any]) -> None:
            _prepare(plan)
            super().setup(config)

    def train_troubled(*args: Any, **options: Any) -> Any:
        _prepare(plan)
        return fresh_seeds.train_seeds(*args, **options)

    vars(study)["run_trials"] = partial(run_trials, trainable=Runner)
    vars(confirmation)["train_seeds"] = train_troubled
    if not plan.is_patient:
        _hurry()
        vars(study)["_FLUSH_S"] = 0.0
    return run.main(list(options))


def _prepare(plan: Plan) -> None:
    """In a worker, once: have its trainings do their deeds."""
    open_training = trainable.open_training
    if open_training.__name__ == "open_troubled":
        return

    def open_troubled(config: dict[str, Any], *crops: Any) -> Any:
        training, metrics = open_training(config, *crops)
        train_steps = training.train_steps
        is_fresh = CONFIRMATION in Path(config["checkpoint"]).parts
        who = CONFIRMATION if is_fresh else str(config["number"])

        def run_troubled() -> Any:
            is_first = _note(Path(plan.notes, NOTES), who, training.epoch + 1)
            if training.epoch == 1:
                _do(plan.deeds.get(who, ""), is_first, Path(plan.notes, GO))
            return train_steps()

        vars(training)["train_steps"] = run_troubled
        return training, metrics

    for name in ("search.trainable", "search.fresh_seeds"):
        if name in sys.modules:
            vars(sys.modules[name])["open_training"] = open_troubled
    if not plan.is_patient:
        _hurry()


def _hurry() -> None:
    """Let all pauses for storage that refuses be over at once."""
    from search import shared_files
    from tests.store_fixtures import Clock

    vars(shared_files)["time"] = Clock()


def _note(path: Path, who: str, epoch: int) -> bool:
    """Write that an epoch begins; whether it does so for the first time."""
    note = {"who": who, "epoch": epoch, "pid": os.getpid()}
    with path.open("a+") as file:
        file.write(json.dumps(note) + "\n")
        file.seek(0)
        known = [json.loads(line) for line in file]
    return sum(n["who"] == who and n["epoch"] == epoch for n in known) == 1


def _do(deed: str, is_first: bool, go: Path) -> None:
    if deed == "hang always":
        threading.Event().wait()
    if deed == "hang once" and is_first:
        ctypes.PyDLL(None).pause()
    if deed == "freeze once" and is_first:
        os.kill(os.getpid(), signal.SIGSTOP)
    if deed == "leak":
        n_pieces, n_bytes = _HOARD
        hoard = []
        while len(hoard) < n_pieces:
            hoard.append(b"x" * n_bytes)
            time.sleep(0.05)
    if deed == "wait":
        while not go.exists():
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(Plan(**json.loads(sys.argv[1])), sys.argv[2:]))
