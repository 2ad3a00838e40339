"""Waveform to complex spectrum, batched on the device that trains (paper section IV-B)."""

import torch
from torch import Tensor, nn

from mimimi_core.config import FrontendConfig


class Frontend(nn.Module):
    """Short-time Fourier transform of crops with a Hann window and no centring.

    Frame t of a crop that starts at sample `s * hop` equals frame `s + t` of the whole clip's
    transform, so nothing outside the crop needs to be read.
    """

    window: Tensor

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Spectra `(B, 2, n_bins, T)` float32 (real, imaginary) of `(B, N)` float32 in [-1, 1]."""
        if self.config.normalization == "rms":
            rms = waveforms.square().mean(dim=1, keepdim=True).sqrt()
            waveforms = waveforms / (rms + 1e-8)
        spectrum = torch.stft(
            waveforms,
            n_fft=self.config.n_fft,
            hop_length=self.config.hop,
            window=self.window,
            center=False,
            return_complex=True,
        )
        return torch.view_as_real(spectrum).permute(0, 3, 1, 2)
