"""Cuts crops of clips out of one flat int16 tensor, batched, on whatever device holds it."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mimimi_core.config import FrontendConfig

if TYPE_CHECKING:  # scoring a waveform needs no Arrow and no audio decoder
    from mimimi_core.pack import Pack

INT16_SCALE = 1.0 / 32768.0


class Crops:
    """The clips of a pack (or any waveforms) laid end to end, ready to be cropped.

    On a CPU the samples stay in the pack's memory map, shared by all trials of a node.

    Args:
        samples: int16 `(total,)`.
        starts: int64 `(n,)` first sample of each clip.
        lengths: int64 `(n,)` samples of each clip.
        config: Length of a crop.
        device: Where the samples are to live.
    """

    def __init__(
        self,
        samples: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        config: FrontendConfig,
        device: torch.device,
    ) -> None:
        self.config = config
        if lengths.min() < config.crop_samples:
            samples, starts, lengths = _repeat_short_clips(
                samples, starts, lengths, config.crop_samples
            )
        with warnings.catch_warnings():
            # The memory map is read-only and so is every use of this tensor.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._samples = torch.from_numpy(samples).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self.lengths = lengths
        self._last_frame = torch.from_numpy((lengths - config.crop_samples) // config.hop).to(
            device
        )
        self._windows = self._samples.as_strided(
            (len(samples) - config.crop_samples + 1, config.crop_samples), (1, 1)
        )

    @classmethod
    def from_pack(cls, pack: "Pack", config: FrontendConfig, device: torch.device) -> "Crops":
        """Crops of every clip of a pack, by its clip indices."""
        return cls(pack.samples, pack.starts, pack.lengths, config, device)

    @classmethod
    def from_waveforms(
        cls, waveforms: list[np.ndarray], config: FrontendConfig, device: torch.device
    ) -> "Crops":
        """Crops of int16 waveforms, each `(N,)`."""
        lengths = np.array([len(w) for w in waveforms], dtype=np.int64)
        return cls(np.concatenate(waveforms), np.cumsum(lengths) - lengths, lengths, config, device)

    def at(self, clips: Tensor, offsets: Tensor) -> Tensor:
        """Crops `(B, crop_samples)` float32 in [-1, 1) of `clips` `(B,)`, `offsets` samples in."""
        return self._windows[self._starts[clips] + offsets].float() * INT16_SCALE

    def random(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """As `at`, each from a random frame (paper IV-B: "randomly choosing start points")."""
        u = torch.rand(len(clips), generator=generator, device=clips.device)
        frames = (u * (self._last_frame[clips] + 1)).long()
        return self.at(clips, torch.minimum(frames, self._last_frame[clips]) * self.config.hop)


def window_offsets(n_samples: int, config: FrontendConfig) -> list[int]:
    """Offsets of the deterministic windows that score a clip: side by side, the last end-aligned.

    A 10 s clip has 311 frames, so windows of 64 frames start at frames 0, 64, 128, 192 and 247.
    """
    last = max(n_samples - config.crop_samples, 0) // config.hop
    frames = list(range(0, last + 1, config.n_frames))
    if frames[-1] != last:
        frames.append(last)
    return [frame * config.hop for frame in frames]


def _repeat_short_clips(
    samples: np.ndarray, starts: np.ndarray, lengths: np.ndarray, shortest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Repeat each clip that is shorter than a crop until one fits; costs a copy of all samples."""
    clips = [samples[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    clips = [np.resize(c, shortest) if len(c) < shortest else c for c in clips]
    lengths = np.array([len(c) for c in clips], dtype=np.int64)
    return np.concatenate(clips), np.cumsum(lengths) - lengths, lengths
