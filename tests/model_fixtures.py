"""Packs of tones held in memory, and networks small enough to be trained within a test."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mimimi_core.config import (
    AugmentConfig,
    FrontendConfig,
    NetworkConfig,
    TrainConfig,
    TrialConfig,
)
from mimimi_core.detector import Detector, Member
from mimimi_core.network import build_network
from mimimi_core.pack import Pack

FRONTEND = FrontendConfig(n_fft=64, hop=32, n_frames=8)  # crops of 288 samples, spectra 33 x 8
NETWORK = NetworkConfig(channels=2, depth=3)
AUGMENT_ALL = AugmentConfig(mixing=True, mask=True, noise=True, shift=True)
# As a trial has them; with the hop of the length of a window, a crop is half a thousand samples.
TINY_PARAMS = {
    "network.channels": 2,
    "network.depth": 3,
    "frontend.n_fft": 64,
    "frontend.hop": 64,
    "frontend.n_frames": 8,
    "train.precision": "fp32",
}
CPU = torch.device("cpu")


def tiny_config(augment: AugmentConfig | None = None, **train: Any) -> TrialConfig:
    """Settings that train in milliseconds, in fp32 unless `train` says otherwise."""
    settings: dict[str, Any] = {"precision": "fp32", "batch_size": 4, "epochs": 4, "lr": 3e-3}
    return TrialConfig(
        frontend=FRONTEND,
        network=NETWORK,
        augment=augment or AugmentConfig(),
        train=TrainConfig(**settings | train),
    )


def make_detector(
    network: NetworkConfig = NETWORK,
    frontend: FrontendConfig = FRONTEND,
    machine_ids: tuple[str, ...] = ("id_00", "id_02", "id_04"),
) -> Detector:
    """An untrained detector."""
    torch.manual_seed(0)
    config = TrialConfig(network=network, frontend=frontend)
    return Detector(
        members=[Member(config=config, network=build_network(network, len(machine_ids)))],
        machine_type="fan",
        machine_ids=machine_ids,
        thresholds=dict.fromkeys(machine_ids),
    )


def make_pack(
    clips: Sequence[np.ndarray],
    id_index: Sequence[int],
    labels: Sequence[int],
    splits: Sequence[str],
) -> Pack:
    """A pack that lies in no file; ids are named id_00, id_02, ..."""
    lengths = np.array([len(clip) for clip in clips], dtype=np.int64)
    return Pack(
        path=Path("nowhere.arrow"),
        machine_type="fan",
        sample_rate=16000,
        data_hash="0" * 16,
        names=tuple(f"fan/{n}.wav" for n in range(len(clips))),
        machine_ids=tuple(f"id_{2 * i:02d}" for i in range(max(id_index) + 1)),
        samples=np.concatenate(clips).astype(np.int16),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        id_index=np.array(id_index, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        splits=np.array(splits),
        digests=np.arange(len(clips), dtype=np.uint64),
    )


def tone(frequency: float, rng: np.random.Generator, n_samples: int = 800) -> np.ndarray:
    """int16 `(N,)`: a tone of random phase in a little noise."""
    phase = 2 * np.pi * (frequency * np.arange(n_samples) / 16000 + rng.random())
    return np.round(8000 * np.sin(phase) + 400 * rng.standard_normal(n_samples)).astype(np.int16)


def tone_pack(n_ids: int = 2, n_train: int = 7, n_other: int = 3) -> Pack:
    """Each id hums at its own pitch; its anomalies drift towards that of the next id.

    Per id: `n_train` normals to train on, `n_other` held out, and as many normals and anomalies
    each in val and test.
    """
    rng = np.random.default_rng(0)
    clips, ids, labels, splits = [], [], [], []
    parts = [("train", 0, n_train), ("holdout", 0, n_other)]
    parts += [(split, label, n_other) for split in ("val", "test") for label in (0, 1)]
    for index in range(n_ids):
        for split, label, n in parts:
            for _ in range(n):
                clips.append(tone(1000 + 1500 * index + 700 * label, rng))
                ids.append(index)
                labels.append(label)
                splits.append(split)
    return make_pack(clips, ids, labels, splits)


def resplit(pack: Pack, chosen: np.ndarray, split: str) -> Pack:
    """The pack with the chosen clips in another split."""
    splits = pack.splits.copy()
    splits[chosen] = split
    return dataclasses.replace(pack, splits=splits)


class Reads(TorchDispatchMode):
    """Counts what makes a host wait for its device: values that are read back."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
        waits += ("_linalg_check_errors",)  # of linalg functions that have an `_ex`
        self.n += func.overloadpacket.__name__ in waits
        return func(*args, **(kwargs or {}))
