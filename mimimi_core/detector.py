"""Trained networks with all they need to judge a clip: two files, no pickles, no search.

folder/weights.safetensors   parameters and buffers, digests of the clips that trained them
folder/detector.json         settings and scales, machine type and ids, thresholds
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from mimimi_core.config import FrontendConfig, TrialConfig
from mimimi_core.crops import Crops
from mimimi_core.ensemble import Scale
from mimimi_core.frontend import Frontend
from mimimi_core.network import build_network
from mimimi_core.precision import pick_device, use_bf16
from mimimi_core.scoring import ClipScores, Threshold, score_clips
from mimimi_core.systems import System

if TYPE_CHECKING:
    from mimimi_core.pack import Pack

WEIGHTS, SETTINGS = "weights.safetensors", "detector.json"
_TRAINED_ON = "trained_on"  # beside the weights: thousands of digests would bury the settings


class DetectorError(ValueError):
    """A model folder cannot be read, or is asked for what it does not know."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One trained network of a detector."""

    config: TrialConfig
    network: System
    scale: Scale | None = None  # of its scores; None where it judges alone


class Detector:
    """Scores waveforms of one machine type, by one network or by the mean z-score of several.

    Args:
        members: The networks; all have a scale if there are several.
        machine_type: Such as "fan".
        machine_ids: Ids in the order of the networks' outputs.
        thresholds: Decision level per id; None where held-out normals allowed none.
        trained_on: uint64 `(n,)` digests of the clips that trained the members, see
            `Pack.digests`; empty where nobody knows, as of detectors saved before it was kept.
        untrained_ids: Those of the ids that no such clip was of, so that no score of theirs counts.
        device: Where to score; the first GPU or the CPU by default.
    """

    def __init__(
        self,
        *,
        members: Sequence[Member],
        machine_type: str,
        machine_ids: Sequence[str],
        thresholds: dict[str, Threshold | None],
        trained_on: np.ndarray | None = None,
        untrained_ids: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> None:
        if not members or (len(members) > 1 and any(member.scale is None for member in members)):
            raise ValueError("a detector needs a network, or several that each have a scale")
        self.machine_type = machine_type
        self.machine_ids = tuple(machine_ids)
        self.thresholds = thresholds
        self.trained_on = np.empty(0, np.uint64) if trained_on is None else trained_on
        self.untrained_ids = tuple(untrained_ids)
        self.members = tuple(members)
        self._move(device or pick_device())

    def _move(self, device: torch.device) -> None:
        self.device = device
        for member in self.members:
            member.network.to(device).eval()

    @property
    def judged_ids(self) -> tuple[str, ...]:
        """Ids whose scores count."""
        return tuple(i for i in self.machine_ids if i not in self.untrained_ids)

    @property
    def sample_rate(self) -> int:
        """Hz, of the waveforms that all members hear."""
        return self.members[0].config.frontend.sample_rate

    def save(self, folder: Path) -> None:
        """Write both files, the settings last: a folder with settings is complete.

        Those of an earlier detector go before its weights do, so that no kill mixes the two.
        """
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            f"{index}.{name}": w.contiguous()
            for index, member in enumerate(self.members)
            for name, w in member.network.state_dict().items()
        }
        # the bits of uint64 as int64, which all that reads these files knows
        weights[_TRAINED_ON] = torch.from_numpy(self.trained_on.view(np.int64))
        # as bytes, for of a full disk `save_file` raises an error of its own
        (folder / f".{WEIGHTS}.tmp").write_bytes(to_bytes(weights))
        settings = {
            "machine_type": self.machine_type,
            "machine_ids": list(self.machine_ids),
            "untrained_ids": list(self.untrained_ids),
            "thresholds": {
                machine_id: threshold and dataclasses.asdict(threshold)
                for machine_id, threshold in self.thresholds.items()
            },
            "members": [
                {
                    "params": member.config.to_params(),
                    "scale": member.scale and member.scale.to_lists(),
                }
                for member in self.members
            ],
        }
        temporary = folder / f".{SETTINGS}.tmp"
        temporary.write_text(json.dumps(settings, indent=2) + "\n")
        (folder / SETTINGS).unlink(missing_ok=True)
        (folder / f".{WEIGHTS}.tmp").replace(folder / WEIGHTS)
        temporary.replace(folder / SETTINGS)

    @classmethod
    def load(cls, folder: Path, device: torch.device | None = None) -> "Detector":
        """Read what `save` wrote, to score on a device as above.

        Raises:
            DetectorError: A file is missing or damaged.
        """
        try:
            settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
            machine_ids = settings["machine_ids"]
            weights = load_file(folder / WEIGHTS)
            digests = weights.pop(_TRAINED_ON, torch.empty(0, dtype=torch.int64))
            if "members" in settings:
                members = [
                    _member(about, len(machine_ids), weights, f"{index}.")
                    for index, about in enumerate(settings["members"])
                ]
            else:  # written before there were ensembles
                members = [_member({**settings, "scale": None}, len(machine_ids), weights, "")]
            saved = settings["thresholds"]
            thresholds = {
                machine_id: Threshold(**saved[machine_id]) if saved[machine_id] else None
                for machine_id in machine_ids
            }
            detector = cls(
                members=members,
                machine_type=settings["machine_type"],
                machine_ids=machine_ids,
                thresholds=thresholds,
                trained_on=digests.numpy().view(np.uint64),
                untrained_ids=settings.get("untrained_ids", ()),
                device=torch.device("cpu"),
            )
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise DetectorError(f"{folder} holds no readable detector: {error}") from error
        detector._move(device or pick_device())  # a device that is full is no damage
        return detector

    def score(self, waveforms: Sequence[np.ndarray], machine_id: str) -> np.ndarray:
        """Anomaly scores float64 `(n,)` of int16 waveforms `(N,)` at the detector's sample rate.

        Raises:
            DetectorError: The id is not one that the network learned, or a waveform is not int16.
        """
        if machine_id not in self.machine_ids:
            raise DetectorError(
                f"machine id {machine_id!r} is unknown to this {self.machine_type} model; "
                f"it knows {', '.join(self.machine_ids)}"
            )
        for waveform in waveforms:
            if waveform.dtype != np.int16 or waveform.ndim != 1 or not len(waveform):
                raise DetectorError(
                    "a waveform must be int16 samples of one channel, got "
                    f"{waveform.dtype} of shape {waveform.shape}"
                )
        nll = self._nll(
            lambda frontend: Crops.from_waveforms(list(waveforms), frontend, self.device),
            np.arange(len(waveforms)),
        )
        return nll[:, self.machine_ids.index(machine_id)]

    def unseen(self, pack: "Pack", clips: np.ndarray) -> np.ndarray:
        """Those of some clips of a pack that did not train this detector, as clip indices."""
        return clips[~np.isin(pack.digests[clips], self.trained_on)]

    def score_pack(self, pack: "Pack", clips: np.ndarray) -> ClipScores:
        """Scores of clips of a pack, whose ids must all be known; `id_index` is the detector's."""
        columns = [self.machine_ids.index(pack.machine_ids[i]) for i in pack.id_index[clips]]
        nll = np.empty((0, len(self.machine_ids)))
        if len(clips):
            nll = self._nll(lambda frontend: Crops.from_pack(pack, frontend, self.device), clips)
        return ClipScores(clips=clips, id_index=np.array(columns, dtype=np.int64), nll=nll)

    def _nll(self, crops_of: Callable[[FrontendConfig], Crops], clips: np.ndarray) -> np.ndarray:
        """Scores under every id `(n, C)`: a member's own, or the mean of the members' z-scores."""
        found = []
        for member in self.members:
            frontend = Frontend(member.config.frontend).to(self.device)
            bf16 = use_bf16(member.config.train.precision, self.device)
            crops = crops_of(member.config.frontend)
            nll = score_clips(member.network, frontend, crops, clips, bf16)
            found.append(nll if member.scale is None else member.scale.z(nll))
        return np.asarray(np.mean(found, axis=0))

    def decide(self, score: float, machine_id: str) -> str | None:
        """Call a score "normal" or "anomaly"; None where the id has no threshold."""
        threshold = self.thresholds[machine_id]
        if threshold is None:
            return None
        return "anomaly" if score > threshold.value else "normal"


def _member(about: dict[str, Any], n_ids: int, weights: dict[str, Tensor], prefix: str) -> Member:
    """A member as it was saved; its weights have a prefix."""
    config = TrialConfig.from_params(about["params"])
    network = build_network(config.network, n_ids, config.frontend)
    own = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
    network.load_state_dict(own)
    scale = about["scale"]
    return Member(config=config, network=network, scale=scale and Scale.from_lists(**scale))


class _Pyfunc:
    """What `mlflow.pyfunc.load_model` returns: rows of (machine_id, waveform) to scores."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Score a data frame with columns `machine_id` and `waveform` (floats in [-1, 1]).

        Returns:
            A row each of `score`, `threshold` and `decision`; without a threshold NaN and None.

        Raises:
            ValueError: A waveform is empty, not of one channel, not finite or beyond full scale.
            DetectorError: A machine id is unknown.
        """
        import pandas as pd  # only where a data frame comes in, so it is there

        ids = list(model_input["machine_id"])
        scores = [
            self._detector.score([_to_int16(waveform, row)], ids[row])[0]
            for row, waveform in enumerate(model_input["waveform"])
        ]
        thresholds = [self._detector.thresholds[machine_id] for machine_id in ids]
        decisions = [self._detector.decide(*row) for row in zip(scores, ids, strict=True)]
        return pd.DataFrame(
            {
                "score": pd.Series(scores, dtype=np.float64),
                "threshold": pd.Series([t and t.value for t in thresholds], dtype=np.float64),
                "decision": pd.Series(decisions, dtype=object),
            }
        )


def _to_int16(waveform: Any, row: int) -> np.ndarray:
    samples = np.asarray(waveform, np.float64)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(
            f"row {row}: waveform must hold samples of one channel, got shape {samples.shape}"
        )
    peak = np.abs(samples).max()
    if not peak <= 1:  # which NaN is not, either
        raise ValueError(
            f"row {row}: waveform must lie in [-1, 1], got a peak of {peak:g}; "
            "divide int16 samples by 32768"
        )
    return np.minimum(np.round(samples * 32768), 32767).astype(np.int16)


def _load_pyfunc(path: str) -> _Pyfunc:
    """Entry point of MLflow's `loader_module`."""
    return _Pyfunc(Detector.load(Path(path)))
