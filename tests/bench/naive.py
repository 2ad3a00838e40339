"""The network and loops that the paper's text leads to if nobody looks at speed; a yardstick.

Table I written down plainly: four real convolutions for a complex one, batch norm in complex64 with
one variance for both parts, fp32. Every clip is decoded and transformed whole, by a DataLoader,
whenever it is asked for, though 64 of its 311 frames are read; losses are fetched at every step.

B batch, C ids, F bins, T frames, W windows of a clip.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mimimi_core.audio import decode
from mimimi_core.config import FrontendConfig, NetworkConfig, Size
from mimimi_core.crops import window_offsets
from mimimi_core.network import ChannelAttention

WORKERS = 2


class NaiveConv(nn.Module):
    """Complex convolution of complex64 as four real ones."""

    def __init__(self, n_in: int, n_out: int, kernel: Size, stride: Size, padding: Size) -> None:
        super().__init__()
        self.real = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False)
        self.imag = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        real = self.real(z.real) - self.imag(z.imag)
        imag = self.real(z.imag) + self.imag(z.real)
        return torch.complex(real, imag)


class NaiveNorm(nn.Module):
    """Batch norm of complex64 by its mean and the mean of its squared distance from it."""

    mean: Tensor
    variance: Tensor

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(n_channels))
        self.beta = nn.Parameter(torch.zeros(n_channels, dtype=torch.complex64))
        self.register_buffer("mean", torch.zeros(n_channels, dtype=torch.complex64))
        self.register_buffer("variance", torch.ones(n_channels))

    def forward(self, z: Tensor) -> Tensor:
        if self.training:
            mean = z.mean(dim=(0, 2, 3))
            variance = (z - mean[:, None, None]).abs().square().mean(dim=(0, 2, 3))
            with torch.no_grad():
                self.mean.lerp_(mean, 0.1)
                self.variance.lerp_(variance, 0.1)
        else:
            mean, variance = self.mean, self.variance
        y = (z - mean[:, None, None]) / torch.sqrt(variance + 1e-5)[:, None, None]
        return self.gamma[:, None, None] * y + self.beta[:, None, None]


class NaivePReLU(nn.Module):
    """PReLU of each part of complex64."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.real, self.imag = nn.PReLU(n_channels), nn.PReLU(n_channels)

    def forward(self, z: Tensor) -> Tensor:
        return torch.complex(self.real(z.real), self.imag(z.imag))


class NaiveNetwork(nn.Module):
    """Table I with attention."""

    def __init__(self, config: NetworkConfig, n_ids: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        n_in = 1
        for n_out, kernel, stride in config.layers:
            padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
            blocks += [NaiveConv(n_in, n_out, kernel, stride, padding)]
            blocks += [NaiveNorm(n_out), NaivePReLU(n_out)]
            n_in = n_out
        self.encoder = nn.Sequential(*blocks)
        self.magnitude_conv = nn.Conv2d(n_in, n_ids, (5, 1), (2, 1), (2, 0))
        self.complex_conv = nn.Conv2d(2 * n_in, n_ids, (5, 1), (2, 1), (2, 0))
        self.attention = ChannelAttention(2 * n_ids, config.attention_expansion, padding=1)
        self.total_conv = nn.Conv2d(2 * n_ids, n_ids, (1, 1))

    def forward(self, spectrum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `(B, C)` by magnitude, by both parts, in total; of complex64 `(B, 1, F, T)`."""
        z = self.encoder(spectrum)
        by_magnitude = self.magnitude_conv(z.abs())
        by_complex = self.complex_conv(torch.cat([z.real, z.imag], dim=1))
        total = self.total_conv(self.attention(torch.cat([by_magnitude, by_complex], dim=1)))
        return by_magnitude.mean((2, 3)), by_complex.mean((2, 3)), total.mean((2, 3))


class NaiveClips(Dataset[tuple[Tensor, int]]):
    """WAV files; an item is one random window `(1, F, T)` complex64, or all that score a clip."""

    def __init__(
        self, paths: Sequence[Path], ids: np.ndarray, config: FrontendConfig, all_windows: bool
    ) -> None:
        self.paths, self.ids, self.config, self.all_windows = paths, ids, config, all_windows

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        config = self.config
        samples, _ = decode(self.paths[index].read_bytes(), config.sample_rate)
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
        window = torch.hann_window(config.n_fft)
        spectrum = torch.stft(
            waveform, config.n_fft, config.hop, window=window, center=False, return_complex=True
        )
        n = config.n_frames
        if self.all_windows:
            firsts = [offset // config.hop for offset in window_offsets(len(waveform), config)]
        else:
            firsts = [int(torch.randint(spectrum.shape[1] - n + 1, ()))]
        crops = torch.stack([spectrum[:, first : first + n] for first in firsts])
        return (crops[:, None] if self.all_windows else crops), int(self.ids[index])


def train_epoch(
    network: NaiveNetwork, optimizer: torch.optim.Optimizer, clips: NaiveClips, batch_size: int
) -> tuple[float, float]:
    """Mean loss and accuracy of an epoch in which they were learned."""
    network.train()
    loss_sum = right = 0.0
    for spectra, ids in DataLoader(clips, batch_size, shuffle=True, num_workers=WORKERS):
        optimizer.zero_grad()
        logits = network(spectra)
        loss = torch.stack([F.cross_entropy(x, ids) for x in logits]).sum()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(ids)
        right += (logits[2].argmax(dim=1) == ids).sum().item()
    return loss_sum / len(clips), right / len(clips)


def score(network: NaiveNetwork, clips: NaiveClips, clips_per_batch: int) -> np.ndarray:
    """Mean over windows of the cross-entropy of the id that a clip claims, `(n,)`."""
    network.eval()
    scores = []
    with torch.no_grad():
        for windows, ids in DataLoader(clips, clips_per_batch, num_workers=WORKERS):
            total = network(windows.flatten(0, 1))[2]
            claimed = ids.repeat_interleave(windows.shape[1])
            losses = F.cross_entropy(total, claimed, reduction="none")
            scores += losses.view(windows.shape[:2]).mean(dim=1).tolist()
    return np.array(scores)
