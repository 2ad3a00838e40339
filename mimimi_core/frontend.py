"""Waveform to features, batched on the device that trains (paper section IV-B)."""

import torch
from torch import Tensor, nn

from mimimi_core.complex_nn import complex_magnitude
from mimimi_core.config import FrontendConfig
from mimimi_core.precision import full_precision

_LEAST_POWER = 1e-10  # of a mel band, -100 dB


class Frontend(nn.Module):
    """Short-time Fourier transform of crops, and what a network is to see of it.

    Hann window, no centring: frame t of a crop that starts at sample `s * hop` equals frame
    `s + t` of the whole clip's transform, so nothing outside the crop needs to be read. Augmenting
    works on the complex spectrum between the two steps, whatever the features are.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        if config.kind == "logmel":
            self.register_buffer("filters", mel_filters(config), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Features `(B, *feature_shape)` float32 of `(B, N)` float32 in [-1, 1]."""
        return self.features(self.transform(waveforms))

    def transform(self, waveforms: Tensor) -> Tensor:
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

    def features(self, spectrum: Tensor) -> Tensor:
        """Of `(B, 2, n_bins, T)`: itself, its magnitude `(B, 1, n_bins, T)`, or mel bands in dB."""
        if self.config.kind == "complex":
            return spectrum
        if self.config.kind == "magnitude":
            return complex_magnitude(spectrum)
        power = spectrum.square().sum(dim=1)
        with full_precision(spectrum.device):
            bands = self.filters.T @ power  # (B, n_mels, T)
        return 10 * torch.log10(bands.clamp_min(_LEAST_POWER))[:, None]


def mel_filters(config: FrontendConfig) -> Tensor:
    """Mel filter bank `(n_bins, n_mels)` from 0 Hz to Nyquist, with librosa's scale and areas.

    So it is that of the DCASE 2020 baseline, whose log-mel spectra are 10 log10 of mel power too.
    """
    from torchaudio.functional import melscale_fbanks  # takes long to load; few front-ends want it

    filters: Tensor = melscale_fbanks(
        n_freqs=config.n_bins,
        f_min=0.0,
        f_max=config.sample_rate / 2,
        n_mels=config.n_mels,
        sample_rate=config.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return filters
