"""Tiny WAV files in every layout that the project reads; noise, so that no two clips are alike."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile


def noise(seed: int, n_samples: int = 800, channels: int = 1) -> np.ndarray:
    """(N, channels) int16 white noise."""
    shape = (n_samples, channels)
    return np.random.default_rng(seed).integers(-9000, 9000, shape).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray | None = None, rate: int = 16000) -> Path:
    """A PCM16 file; without samples, noise that its name and parent's name decide."""
    if samples is None:
        samples = noise(zlib.crc32("/".join(path.parts[-3:]).encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def write_dcase2020(
    root: Path,
    machine_type: str = "fan",
    ids: Sequence[str] = ("id_00", "id_02"),
    n_train: int = 3,
    n_test: int = 2,
) -> Path:
    """`n_train` train normals, `n_test` test normals and as many anomalies per id."""
    home = root / machine_type
    for machine_id in ids:
        for n in range(n_train):
            write_wav(home / "train" / f"normal_{machine_id}_{n:08d}.wav")
        for n in range(n_test):
            write_wav(home / "test" / f"normal_{machine_id}_{n:08d}.wav")
            write_wav(home / "test" / f"anomaly_{machine_id}_{n:08d}.wav")
    return root


def write_dcase2021(
    root: Path, machine_type: str = "gearbox", tests: Sequence[str] = ("test",)
) -> Path:
    """Two sections with one train normal, and a normal and an anomaly per test folder."""
    home = root / machine_type
    for section in ("section_00", "section_01"):
        write_wav(home / "train" / f"{section}_source_train_normal_0000_vel_8.wav")
        write_wav(home / "train" / f"{section}_target_train_normal_0000.wav")
        for folder in tests:
            domain = "target" if folder.startswith("target") else "source"
            for label in ("normal", "anomaly"):
                write_wav(home / folder / f"{section}_{domain}_test_{label}_0000_vel_8.wav")
    return root


def write_mimii(
    root: Path,
    machine_type: str = "valve",
    ids: Sequence[str] = ("id_00", "id_06"),
    n_normal: int = 6,
    n_abnormal: int = 2,
    channels: int = 8,
) -> Path:
    """Clips with `channels` channels in the full MIMII layout."""
    for machine_id in ids:
        home = root / machine_type / machine_id
        for folder, n_clips in (("normal", n_normal), ("abnormal", n_abnormal)):
            for n in range(n_clips):
                path = home / folder / f"{n:08d}.wav"
                seed = zlib.crc32(f"{machine_id}/{folder}/{n}".encode())
                write_wav(path, noise(seed, channels=channels))
    return root


def real_clips() -> Path:
    """The folder of real recordings, which are never part of the project.

    `MIMIMI_REAL_CLIPS` names it, else it may lie beside the checkout. Where neither is so the test
    cannot run; a folder that was named and is not there fails it.
    """
    named = os.environ.get("MIMIMI_REAL_CLIPS")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if named is None and not folder.is_dir():
        pytest.skip("no real clips: name their folder in MIMIMI_REAL_CLIPS")
    assert folder.is_dir(), f"MIMIMI_REAL_CLIPS must name a folder, got {folder}"
    return folder
