"""Augmentations of training crops, vectorised on the device and drawn from one generator.

Every function takes the whole batch and a chance `p` per crop: no crop is picked on the host, so
nothing waits for the device.
"""

import torch
from torch import Tensor


def _chosen(n: int, p: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device) < p


def mixing_weights(
    ids: Tensor, present: Tensor, p: float, alpha: float, g: torch.Generator
) -> Tensor:
    """Weights over ids of each crop's linear combination, which are also its KL target.

    Giri et al. (DCASE 2020): weights drawn at random that sum to 1; here Dirichlet(alpha) over the
    ids that have training clips, for a share `p` of the crops, and one-hot for the others.

    Args:
        ids: int64 `(B,)` id of each crop.
        present: bool `(C,)` ids that have training clips.
        p: Chance that a crop is mixed.
        alpha: Concentration.
        g: Source of randomness, on the device of `ids`.

    Returns:
        float32 `(B, C)`, rows summing to 1.
    """
    n, n_ids = len(ids), len(present)
    one_hot = torch.eye(n_ids, device=ids.device)[ids]
    gamma = torch._standard_gamma(torch.full((n, n_ids), alpha, device=ids.device), generator=g)
    gamma = gamma.clamp_min(1e-12) * present
    weights = gamma / gamma.sum(dim=1, keepdim=True)
    return torch.where(_chosen(n, p, g)[:, None], weights, one_hot)


def add_noise(waveforms: Tensor, p: float, level: float, g: torch.Generator) -> Tensor:
    """Add white noise of up to `level` times the crop's own RMS to `(B, N)` waveforms."""
    n = len(waveforms)
    rms = waveforms.square().mean(dim=1, keepdim=True).sqrt()
    strength = torch.rand(n, 1, generator=g, device=g.device) * level * _chosen(n, p, g)[:, None]
    noise = torch.randn(waveforms.shape, generator=g, device=g.device)
    return waveforms + rms * strength * noise


def mask_bands(spectrum: Tensor, p: float, bands: int, width: int, g: torch.Generator) -> Tensor:
    """Set up to `bands` random bands of 1..`width` bins of `(B, 2, F, T)` to 0 (SpecAugment)."""
    n, _, n_bins, _ = spectrum.shape
    widths = torch.randint(1, width + 1, (n, bands, 1), generator=g, device=g.device)
    first = (torch.rand(n, bands, 1, generator=g, device=g.device) * n_bins).long()
    bins = torch.arange(n_bins, device=g.device)
    masked = ((bins >= first) & (bins < first + widths)).any(dim=1) & _chosen(n, p, g)[:, None]
    return spectrum * ~masked[:, None, :, None]


def shift_bins(
    spectrum: Tensor, p: float, farthest: int, hop_per_window: float, g: torch.Generator
) -> Tensor:
    """Shift `(B, 2, F, T)` by -farthest..farthest bins; bins that nothing moves into become 0.

    A signal times a carrier of k bins, `exp(2 pi i k n / n_fft)`, is shifted by k in every frame,
    and the carrier goes on from frame to frame: frame t is turned by `k t hop / n_fft` of a circle,
    without which the phase of each line would advance as no line of its new frequency does.

    Args:
        spectrum: Real and imaginary parts.
        p: Chance that a crop is shifted.
        farthest: Bins.
        hop_per_window: hop / n_fft.
        g: Source of randomness, on the device of `spectrum`.
    """
    n, _, n_bins, n_frames = spectrum.shape
    shifts = torch.randint(-farthest, farthest + 1, (n, 1), generator=g, device=g.device)
    shifts = shifts * _chosen(n, p, g)[:, None]
    source = torch.arange(n_bins, device=g.device) - shifts
    is_inside = (source >= 0) & (source < n_bins)
    index = source.clamp(0, n_bins - 1)[:, None, :, None].expand(spectrum.shape)
    shifted = spectrum.gather(2, index) * is_inside[:, None, :, None]
    turns = hop_per_window * shifts * torch.arange(n_frames, device=g.device)  # (B, T)
    angle = 2 * torch.pi * (turns % 1)[:, None, None]
    real, imag = shifted.chunk(2, dim=1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.cat([real * cos - imag * sin, real * sin + imag * cos], dim=1)
