"""Owns the embedded data set: `machines` in the DCASE 2020 layout. Needs no network.

Four machine types with four ids each, 4 s clips, 16 kHz, mono, PCM16; per id 40 train normals, 24
test normals and 24 test anomalies, whose faults take turns by number (`machines.fault_of`).
The distance of a clip's mean log spectrum to its id's mean has an AUC of .67 (fan), .76 (pump),
.70 (slider) and .70 (valve) with seed 0, and the nearest mean names 78 to 95 % of the ids.

    python -m mimimi_core.synth --dest DIR
"""

import argparse
import hashlib
import json
import sys
import tempfile
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mimimi_core.clips import Clip, ManifestError
from mimimi_core.machines import FAULTS, MACHINE_IDS, SAMPLE_RATE, fault_of, machine_clip

CLIPS_PER_ID = (("train", "normal", 40), ("test", "normal", 24), ("test", "anomaly", 24))

VERSION = 1  # of the clips; raise it when a sound changes
_NOTE = "synthetic.json"  # in each type's folder: the version and seed that wrote it


def write_synthetic(dest: Path, machine_types: Sequence[str] | None = None, seed: int = 0) -> Path:
    """Write the machine types (default: all) that are not there yet; returns `dest`.

    A clip depends on the seed and on its own name, not on the other types asked for.

    Raises:
        ManifestError: A machine type is unknown, or its folder holds something else.
    """
    for machine_type in _known(machine_types):
        home = dest / machine_type
        note = json.dumps({"version": VERSION, "seed": seed}) + "\n"
        if not home.exists():
            dest.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=dest, prefix=".writing-") as work:
                made = Path(work, machine_type)
                _write_type(made, machine_type, seed)
                (made / _NOTE).write_text(note)
                _move(made, home)
        if not (home / _NOTE).is_file() or (home / _NOTE).read_text() != note:
            raise ManifestError(
                f"{home}: must hold the embedded clips of version {VERSION} and seed {seed}, "
                "holds others; remove it or name another folder"
            )
    return dest


def list_synthetic(dest: Path, machine_types: Sequence[str] | None = None) -> dict[str, list[Clip]]:
    """The clips that `find_clips` would find once they are written; takes no time.

    Raises:
        ManifestError: A machine type is unknown.
    """
    found = {}
    for machine_type in sorted(_known(machine_types)):
        clips = [
            Clip(
                path=dest.resolve() / machine_type / name,
                name=f"{machine_type}/{name}",
                machine_type=machine_type,
                machine_id=machine_id,
                label=int(label == "anomaly"),
                part="train" if name.startswith("train/") else "labelled",
            )
            for name, machine_id, label, _ in _clips()
        ]
        found[machine_type] = sorted(clips, key=lambda clip: clip.name)
    return found


def _known(machine_types: Sequence[str] | None) -> Sequence[str]:
    for machine_type in machine_types or ():
        if machine_type not in FAULTS:
            known = ", ".join(FAULTS)
            raise ManifestError(f"machine type must be one of {known}, got {machine_type!r}")
    return list(FAULTS) if machine_types is None else machine_types


def _clips() -> Iterator[tuple[str, str, str, int]]:
    """Name, machine id, label and number of each clip of a type."""
    for part, label, n_clips in CLIPS_PER_ID:
        for machine_id in MACHINE_IDS:
            for number in range(n_clips):
                yield f"{part}/{label}_{machine_id}_{number:08d}.wav", machine_id, label, number


def _write_type(home: Path, machine_type: str, seed: int) -> None:
    for name, machine_id, label, number in _clips():
        key = hashlib.blake2b(f"{seed}/{machine_type}/{name}".encode(), digest_size=8)
        rng = np.random.default_rng(int.from_bytes(key.digest(), "big"))
        fault = fault_of(machine_type, number) if label == "anomaly" else None
        samples = machine_clip(machine_type, machine_id, rng, fault)
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(home / name), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
            file.writeframes(samples.tobytes())


def _move(made: Path, home: Path) -> None:
    try:
        made.rename(home)
    except OSError:
        if not home.exists():  # else another process was quicker: its clips are the same
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m mimimi_core.synth", description="Write the embedded data set."
    )
    parser.add_argument("--dest", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of all clips (default 0)")
    args = parser.parse_args(argv)
    try:
        write_synthetic(args.dest, seed=args.seed)
    except ManifestError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"--dest must be a folder that can be written: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
