"""A search of analytic trials as a process of its own, which a test may kill.

python -m tests.analytic_search FOLDER '{"trials": 4, "step_s": 0.1, "plan": {"0": "leak"}}'
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search import shared_files
from search.config import Resources
from search.launch import cluster, run_trials, trial_resources
from search.storages import open_storage
from tests.doubles import analytic_trainable, space_file
from tests.store_fixtures import Clock
from tests.study_fixtures import new_study

ROOT = Path(__file__).parents[1]


@contextmanager
def searching(
    folder: Path, options: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs `search`, killed at the end; its stderr is a pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder), json.dumps(options)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | dict(environment or {}),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def search(
    folder: Path,
    *,
    trials: int,
    address: str | None = None,
    step_s: float = 0.0,
    plan: dict[str, str] | None = None,
    is_patient: bool = True,
) -> None:
    """Run them; `plan` tells what is special about which number, see `analytic_trainable`."""
    if not is_patient:
        vars(shared_files)["time"] = Clock()  # all its pauses are over at once
    space = space_file(trials=trials, epochs=3, scheduler={"name": "none"})
    deeds: Any = {("fan", int(number)): deed for number, deed in (plan or {}).items()}
    with open_storage(folder) as storage, cluster(address):
        run_trials(
            {"fan": new_study(storage, space=space)},
            space,
            folder=folder,
            packs={"fan": "no pack"},
            resources=trial_resources(Resources(cpu=1)),
            trainable=analytic_trainable(deeds, step_s),
        )


if __name__ == "__main__":
    search(Path(sys.argv[1]), **json.loads(sys.argv[2]))
