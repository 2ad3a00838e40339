"""How long the commands take that a person waits for.

    python -m tests.bench.start [--quick] [--against CHECKOUT]

Each call is a process of its own, in turns with the others, with the packages' files in the
system's cache: a first round, left out, brings them there. Figures are medians. The champion that
`search.score` takes is a network of the paper's size in a sqlite store.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mimimi_core.config import FrontendConfig, NetworkConfig
from search.registry import Registry
from search.tracking import Tracker, check
from tests.audio_fixtures import write_wav
from tests.model_fixtures import make_detector

HERE = Path(__file__).parents[2]
TORCH, IMPORT, DRY_RUN, SCORE, SCORE_MODEL = (
    "import torch",
    "all imports of search.score",
    "--dry-run",
    "search.score",
    "search.score --model",
)


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.start")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    args = parser.parse_args()
    checkouts = {"here": HERE} | ({"there": args.against.resolve()} if args.against else {})
    with tempfile.TemporaryDirectory() as scratch:
        commands = _commands(Path(scratch))
        times: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for number in range(2 if args.quick else 6):
            for name, command in commands.items():
                for where, checkout in checkouts.items():
                    spent = _run(command, checkout)
                    if number:
                        times.setdefault((name, where), []).append(spent)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; seconds, of them processor")
    median = {
        key: tuple(statistics.median(of_one) for of_one in zip(*spent, strict=True))
        for key, spent in times.items()
    }
    for name in commands:
        cells = [
            f"{where} {median[name, where][0]:6.2f} {median[name, where][1]:6.2f}"
            for where in checkouts
        ]
        print(f"{name:<28}{'   '.join(cells)}")
    figures = {
        "dry_run_s": median[DRY_RUN, "here"][0],
        "score_s": median[SCORE, "here"][0],
        "score_model_s": median[SCORE_MODEL, "here"][0],
        "import_s": median[IMPORT, "here"][0],
        "import_torch_s": median[TORCH, "here"][0],
    }
    if args.against:
        figures |= {
            f"{key}_ratio": median[name, "here"][1] / median[name, "there"][1]
            for key, name in (("dry_run", DRY_RUN), ("score", SCORE), ("score_model", SCORE_MODEL))
        }
    print(json.dumps(figures))


def _commands(folder: Path) -> dict[str, list[str]]:
    """Name -> arguments of Python."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    check(store)
    tracker, registry = Tracker(store, folder / "artifacts", "start"), Registry(store)
    make_detector(NetworkConfig(), FrontendConfig()).save(folder / "fan")
    version = registry.register("fan", folder / "fan", tracker.parent_run("fan"), {}, {})
    registry.set_champion("fan", version)
    samples = np.random.default_rng(0).integers(-999, 999, 10 * 16000).astype(np.int16)
    clip = write_wav(folder / "clip.wav", samples)
    score = ["-m", "search.score", "--machine-type", "fan", "--machine-id", "id_00"]
    space = ["--space", "spaces/complex.yaml", "--out", str(folder)]
    return {
        TORCH: ["-c", "import torch"],
        IMPORT: ["-c", "import search.score, search.registry"],
        DRY_RUN: ["-m", "search.run", *space, "--dry-run"],
        SCORE: [*score, "--tracking-uri", store, str(clip)],
        SCORE_MODEL: [*score, "--model", str(folder / "fan"), str(clip)],
    }


def _run(command: list[str], checkout: Path) -> tuple[float, float]:
    """Seconds of a call, and those of the processor among them."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
    )
    wall, after = time.perf_counter() - started, os.times()
    spent = after.children_user + after.children_system
    return wall, spent - before.children_user - before.children_system


if __name__ == "__main__":
    main()
