"""From a folder of recordings, or the embedded data set, to one pack per machine type."""

import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.progress import Progress

from mimimi_core.clips import Clip, find_clips
from mimimi_core.pack import Pack, open_pack, pack_clips
from mimimi_core.synth import list_synthetic, write_synthetic

logger = logging.getLogger(__name__)

JOINT = "joint"  # machine type of a classifier for the ids of all types
_NOT_IN_TYPES = (":", '"')
Manifest = Mapping[str, Sequence[Clip]]  # machine type -> clips


class DataError(ValueError):
    """The recordings cannot serve the search that was asked for."""


def find_data(
    folder: Path | None,
    out: Path,
    machine_types: Sequence[str] | None,
    joint: bool = False,
    *,
    look_only: bool = False,
) -> Manifest:
    """The clips of the chosen machine types, all types by default.

    Args:
        folder: Recordings in any known layout; None for the embedded, synthetic data set.
        out: Where the embedded data set is written.
        machine_types: Which to take.
        joint: Add the type `JOINT`: all clips once more, of machines named `fan_id_00`. Each clip
            is in the same split as before.
        look_only: Do not write the embedded data set, only list what it would be.

    Raises:
        DataError: A type is unknown, or has a name that MLflow cannot hold, or fewer than two
            machine ids to tell apart, or there is nothing to join.
        ManifestError: The folder holds no clips that we can place.
    """
    if folder is None:
        logger.warning(
            "no --data DIR: searching on the EMBEDDED data set, synthetic sound made by "
            "mimimi_core/synth.py; its figures say nothing about real machines"
        )
        folder = out / "embedded"
        if not look_only:
            write_synthetic(folder, machine_types)
        found = list_synthetic(folder, machine_types)
    else:
        found = find_clips(folder)
    chosen = list(machine_types or found)
    for machine_type in chosen:
        if machine_type not in found:
            raise DataError(
                f"--machine-types: {machine_type!r} is not in {folder}; there are "
                f"{', '.join(found)}"
            )
        _require_a_name(machine_type, folder)
        _require_sisters(machine_type, found[machine_type], folder)
    manifest = {machine_type: found[machine_type] for machine_type in chosen}
    return _join(manifest, folder) if joint else manifest


def _join(manifest: Manifest, folder: Path) -> Manifest:
    if len(manifest) < 2 or JOINT in manifest:
        raise DataError(
            f"study.joint needs two machine types or more, none of them named {JOINT}; "
            f"of {folder} it has {', '.join(manifest)}"
        )
    everything = [
        dataclasses.replace(
            clip, machine_type=JOINT, machine_id=f"{clip.machine_type}_{clip.machine_id}"
        )
        for clips in manifest.values()
        for clip in clips
    ]
    return {**manifest, JOINT: sorted(everything, key=lambda clip: clip.name)}


def pack_data(manifest: Manifest, out: Path) -> dict[str, Pack]:
    """Pack each machine type once; later calls find the packs."""
    packs = {}
    for machine_type, clips in manifest.items():
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(f"packing {escape(machine_type)}", total=len(clips))
            path = pack_clips(
                clips,
                out / "packs",
                on_progress=lambda done, _: progress.update(task, completed=done),  # noqa: B023
            )
        packs[machine_type] = open_pack(path)
    return packs


def _require_a_name(machine_type: str, folder: Path) -> None:
    """MLflow's registry takes no ":" in the name of a model, and finds none that holds a quote."""
    found = [character for character in _NOT_IN_TYPES if character in machine_type]
    if found:
        raise DataError(
            f"{folder}: a machine type must not hold {' or '.join(_NOT_IN_TYPES)}, which MLflow's "
            f"model registry cannot carry, got {machine_type!r}: rename its folder, or leave it "
            "out with --machine-types"
        )


def _require_sisters(machine_type: str, clips: Sequence[Clip], folder: Path) -> None:
    """The network learns by telling a machine from its sisters, so there must be one."""
    ids = sorted({clip.machine_id for clip in clips})
    trainable = {c.machine_id for c in clips if c.label == 0 and c.part != "labelled"}
    if len(trainable) < 2:
        raise DataError(
            f"{folder}: {machine_type} has training clips of {len(trainable)} machine id(s) "
            f"(found {', '.join(ids)}), and the network learns by telling sister machines apart, "
            "so it needs at least 2: add normal recordings of another machine of this type, "
            "or leave the type out with --machine-types"
        )
    for machine_id in sorted(set(ids) - trainable):
        logger.warning("%s %s has no training clips: it cannot be judged", machine_type, machine_id)
