"""Every system small enough to be trained within a test, and one whose answers are given."""

from typing import Any

from torch import Tensor

from mimimi_core.config import TrialConfig
from mimimi_core.systems import Classifier, Logits, PooledConv

_SMALL = {"network.channels": 2, "network.depth": 3}
_MAGNITUDE = {"frontend.kind": "magnitude"}
_LOGMEL = {"frontend.kind": "logmel", "frontend.n_mels": 8, "frontend.n_frames": 16}
# Settings of each system that differ from `small_config`'s.
SYSTEMS: dict[str, dict[str, Any]] = {
    "complex with attention": _SMALL,
    "complex": _SMALL | {"network.attention": False},
    "magnitude": _SMALL | _MAGNITUDE,
    "log-mel": _SMALL | _LOGMEL,
    "mobilenetv2": _MAGNITUDE | {"network.kind": "mobilenetv2"},
    "whitening": _SMALL | {"network.norm": "whitening"},
    "modrelu": _SMALL | {"network.activation": "modrelu"},
    "crelu": _SMALL | {"network.activation": "crelu"},
    "zrelu": _SMALL | {"network.activation": "zrelu", "network.channels": 6},  # passes a quarter
    "arcface": _SMALL | {"network.head": "arcface", "network.arcface_scale": 8.0},
    "magnitude, arcface": _SMALL | _MAGNITUDE | {"network.head": "arcface", "augment.mixing": True},
    "noisy arcmix": _SMALL
    | {"network.head": "noisy_arcmix", "network.arcface_scale": 8.0, "augment.mixing": True},
    "autoencoder": _LOGMEL | {"network.kind": "autoencoder"},
    "gmade": _LOGMEL | {"network.kind": "gmade"},
    "mahalanobis": _LOGMEL | {"network.kind": "mahalanobis"},
    "mahalanobis, magnitude": _MAGNITUDE | {"network.kind": "mahalanobis"},
    "nearest neighbour": _LOGMEL | {"network.kind": "nearest_neighbour"},
    "nearest neighbour, magnitude": _MAGNITUDE | {"network.kind": "nearest_neighbour"},
}


def small_config(system: str, **train: Any) -> TrialConfig:
    """Settings that train within a test, on crops of 33 bins or 8 bands."""
    params: dict[str, Any] = {
        "frontend.n_fft": 64,
        "frontend.hop": 32,
        "frontend.n_frames": 8,
        "train.precision": "fp32",
        "train.batch_size": 4,
        "train.epochs": 2,
        "train.lr": 3e-3,
    }
    given = {f"train.{name}": value for name, value in train.items()}
    return TrialConfig.from_params(params | SYSTEMS[system] | given)


class Constant(Classifier):
    """Says the same whatever it hears."""

    def __init__(self, logits: Logits) -> None:
        super().__init__()
        self.logits = logits
        self.total_conv = PooledConv(1, 1, 1)

    def forward(self, features: Tensor) -> Logits:
        return self.logits
