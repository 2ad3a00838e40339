"""Owns the manifest: which clips a folder holds, of which machine, with which label. Opens none.

Layouts are found by looking, not by flags; `LAYOUTS` lists them.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Part = Literal["train", "labelled", "unsplit"]

LAYOUTS = (
    "<type>/{train,test}/{normal,anomaly}_id_XX_N.wav (DCASE 2020)",
    "<type>/{train,test,source_test,target_test}/"
    "section_XX_{source,target}_{train,test}_{normal,anomaly}_N[_attributes].wav (DCASE 2021+)",
    "<type>/id_XX/{normal,abnormal}/N.wav (MIMII)",
)

_PARTS: dict[str, Part] = {
    "train": "train",
    "test": "labelled",
    "source_test": "labelled",
    "target_test": "labelled",
}
_LABELS = {"normal": 0, "anomaly": 1, "abnormal": 1}
_DCASE_NAME = re.compile(
    r"(?P<label_2020>normal|anomaly)_(?P<id>id_[^_]+)_[^_]+"
    r"|(?P<section>section_\d+)_(?:source|target)_(?:train|test)_(?P<label_2021>normal|anomaly)_.+"
)
_MIMII_ID = re.compile(r"id_[^_]+")


class ManifestError(ValueError):
    """A folder of clips cannot be understood; the message names the path and the rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One WAV file and what its place and name say about it."""

    path: Path
    name: str  # path relative to the root that was searched, with forward slashes
    machine_type: str  # "fan"
    machine_id: str  # "id_00"; DCASE 2021+ calls it a section: "section_00"
    label: int  # 0 normal, 1 anomaly
    part: Part  # "unsplit" where the layout has no train and test folders


def find_clips(root: Path) -> dict[str, list[Clip]]:
    """All clips under `root`, per machine type, types and clips sorted by name.

    Args:
        root: A machine type's folder (`fan`), or its parent or grandparent.

    Raises:
        ManifestError: `root` is missing, is no folder or holds no WAV; a WAV fits no layout; an
            anomaly lies in a train folder; a name is not UTF-8; MIMII recordings of one type lie
            there at several SNRs.
    """
    if not root.exists():
        raise ManifestError(f"{root}: no such folder")
    if not root.is_dir():
        raise ManifestError(f"{root}: must be a folder of clips, is a file")
    base = root.resolve()  # the machine type may be the name of the root itself
    prefix = base.as_posix().rstrip("/") + "/"
    clips = [_clip(path, path.as_posix().removeprefix(prefix), root) for path in _wavs(base)]
    clips.sort(key=lambda clip: clip.name)
    if not clips:
        raise ManifestError(f"{root}: holds no WAV file; known layouts: {'; '.join(LAYOUTS)}")
    by_type: dict[str, list[Clip]] = {}
    for clip in clips:
        _require_utf8(clip)
        by_type.setdefault(clip.machine_type, []).append(clip)
    for machine_type, members in by_type.items():
        _require_one_snr(machine_type, members)
    return dict(sorted(by_type.items()))


def _wavs(base: Path) -> Iterator[Path]:
    """WAV files in visible folders; linked folders are followed, each real one is read once."""
    seen: set[Path] = set()
    for folder, subfolders, files in os.walk(base, followlinks=True):
        here = Path(folder)
        real = here.resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # hidden folders hold unfinished downloads, hidden files a Mac's resource forks
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if name[-4:].lower() == ".wav" and not name.startswith("."):
                yield here / name


def _clip(path: Path, name: str, root: Path) -> Clip:
    folder, above, top = (*path.parts[-2::-1], "", "", "")[:3]
    found = _DCASE_NAME.fullmatch(path.stem)
    if found and folder in _PARTS:
        clip = Clip(
            path=path,
            name=name,
            machine_type=above,
            machine_id=found["id"] or found["section"],
            label=_LABELS[found["label_2020"] or found["label_2021"]],
            part=_PARTS[folder],
        )
        if clip.label and clip.part == "train":
            raise ManifestError(f"{root / name}: a train folder must hold normal clips only")
        return clip
    if folder in ("normal", "abnormal") and _MIMII_ID.fullmatch(above):
        return Clip(
            path=path,
            name=name,
            machine_type=top,
            machine_id=above,
            label=_LABELS[folder],
            part="unsplit",
        )
    raise ManifestError(
        f"{root / name}: fits no known layout; rename or remove it. Known: {'; '.join(LAYOUTS)}"
    )


def _require_utf8(clip: Clip) -> None:
    """Refuse names that no pack can hold."""
    try:
        f"{clip.machine_type}/{clip.name}".encode()
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"{str(clip.path)!r}: names of clips and folders must be UTF-8: rename it"
        ) from error


def _require_one_snr(machine_type: str, clips: list[Clip]) -> None:
    """Refuse MIMII recordings repeated at several noise levels: they would leak across splits."""
    homes = sorted({str(clip.path.parents[2]) for clip in clips if clip.part == "unsplit"})
    if len(homes) > 1:
        raise ManifestError(
            f"{homes[0]} and {homes[1]}: the clips of machine type {machine_type!r} must lie in "
            "one folder (MIMII repeats each recording per SNR); name one of them as the data folder"
        )
