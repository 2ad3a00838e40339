import dataclasses

import numpy as np
import pytest
import torch
from scipy.signal import get_window

from mimimi_core.config import FrontendConfig, FrontendKind
from mimimi_core.crops import Crops
from mimimi_core.frontend import Frontend, mel_filters
from tests.audio_fixtures import noise
from tests.model_fixtures import CPU

SETTINGS = [
    FrontendConfig(n_frames=16),
    FrontendConfig(n_fft=256, hop=100, n_frames=9),
    FrontendConfig(n_fft=512, hop=512, n_frames=1),
]


@pytest.mark.parametrize("config", SETTINGS)
def test_frames_of_a_crop_are_those_of_the_whole_clip(config: FrontendConfig) -> None:
    clip = noise(1, 40_000)[:, 0]
    whole = torch.stft(
        torch.from_numpy(clip).float() / 32768,
        config.n_fft,
        config.hop,
        window=torch.hann_window(config.n_fft),
        center=False,
        return_complex=True,
    )
    crops = Crops.from_waveforms([clip], config, CPU)
    firsts = [0, 1, 7, whole.shape[1] - config.n_frames]
    offsets = torch.tensor([first * config.hop for first in firsts])
    spectra = Frontend(config)(crops.at(torch.zeros(len(firsts), dtype=torch.int64), offsets))
    assert spectra.shape == (len(firsts), 2, config.n_bins, config.n_frames)
    assert spectra.dtype == torch.float32
    for spectrum, first in zip(spectra, firsts, strict=True):
        expected = whole[:, first : first + config.n_frames]
        torch.testing.assert_close(spectrum[0], expected.real, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(spectrum[1], expected.imag, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", SETTINGS)
def test_the_transform_is_numpys(config: FrontendConfig) -> None:
    waveform = np.random.default_rng(2).standard_normal(config.crop_samples)
    window = get_window("hann", config.n_fft)
    starts = config.hop * np.arange(config.n_frames)
    frames = np.stack([waveform[s : s + config.n_fft] * window for s in starts])
    expected = np.fft.rfft(frames).T
    real, imag = Frontend(config)(torch.from_numpy(waveform).float()[None])[0].double().numpy()
    np.testing.assert_allclose(real + 1j * imag, expected, atol=1e-3)


@pytest.mark.parametrize("bins", [10.0, 100.25, 300.5])
def test_a_sinusoid_peaks_in_its_bin_and_turns_with_every_hop(bins: float) -> None:
    config = FrontendConfig(hop=320, n_frames=12)
    frequency = bins * config.sample_rate / config.n_fft
    times = torch.arange(config.crop_samples, dtype=torch.float64) / config.sample_rate
    waveform = torch.cos(2 * torch.pi * frequency * times + 0.3).float()
    spectrum = Frontend(config)(waveform[None])[0]
    z = torch.complex(spectrum[0], spectrum[1])
    peak = int(bins)
    assert set(z.abs().argmax(dim=0).tolist()) <= {peak, round(bins + 0.01)}
    turned = z[peak, 1:] * z[peak, :-1].conj()
    expected = torch.polar(
        torch.tensor(1.0), torch.tensor(2 * torch.pi * frequency * config.hop / config.sample_rate)
    )
    torch.testing.assert_close(turned / turned.abs(), expected.expand_as(turned), rtol=0, atol=1e-3)
    if bins == peak:  # on its bin, half the sum of the window, at the phase of the first sample
        torch.testing.assert_close(
            z[peak, 0], torch.polar(torch.tensor(256.0), torch.tensor(0.3)), rtol=1e-3, atol=0.1
        )


def test_rms_normalization_removes_the_gain_of_a_crop() -> None:
    config = FrontendConfig(n_fft=64, hop=32, n_frames=8, normalization="rms")
    quiet = torch.randn(3, config.crop_samples, generator=torch.Generator().manual_seed(0)) * 0.01
    frontend = Frontend(config)
    loud = frontend(quiet * 40)
    torch.testing.assert_close(frontend(quiet), loud, rtol=1e-3, atol=1e-3)
    unit = quiet / quiet.square().mean(dim=1, keepdim=True).sqrt()
    plain = Frontend(FrontendConfig(n_fft=64, hop=32, n_frames=8))(unit)
    torch.testing.assert_close(loud, plain, rtol=1e-3, atol=1e-3)


def test_without_normalization_the_gain_stays() -> None:
    config = FrontendConfig(n_fft=64, hop=32, n_frames=8)
    x = torch.randn(1, config.crop_samples, generator=torch.Generator().manual_seed(0))
    frontend = Frontend(config)
    torch.testing.assert_close(frontend(3 * x), 3 * frontend(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalization", ["none", "rms"])
def test_silence_is_finite(normalization: str) -> None:
    config = FrontendConfig(n_fft=64, hop=32, n_frames=8, normalization=normalization)  # type: ignore[arg-type]
    assert Frontend(config)(torch.zeros(2, config.crop_samples)).abs().max() == 0


@pytest.mark.parametrize("kind", ["complex", "magnitude", "logmel"])
def test_autocast_leaves_the_features_in_float32(kind: FrontendKind) -> None:
    config = FrontendConfig(kind=kind, n_fft=64, hop=32, n_frames=8, n_mels=8)
    x = torch.randn(2, config.crop_samples, generator=torch.Generator().manual_seed(0))
    plain = Frontend(config)(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(Frontend(config)(x), plain, rtol=0, atol=0)


def _both(config: FrontendConfig, kind: FrontendKind) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of some crops, and their complex spectra from numpy-checked code above."""
    x = torch.randn(3, config.crop_samples, generator=torch.Generator().manual_seed(0))
    spectra = Frontend(config)(x)
    features = Frontend(dataclasses.replace(config, kind=kind))(x)
    return features, torch.complex(spectra[:, 0], spectra[:, 1])


def test_magnitude_is_the_absolute_value_of_the_transform() -> None:
    config = FrontendConfig(n_fft=256, hop=100, n_frames=9)
    features, z = _both(config, "magnitude")
    assert features.shape == (3, 1, 129, 9)
    torch.testing.assert_close(features[:, 0], z.abs(), rtol=1e-4, atol=1e-4)


def test_logmel_is_the_power_in_mel_bands_in_decibels() -> None:
    config = FrontendConfig(n_fft=256, hop=100, n_frames=9, n_mels=32)
    features, z = _both(config, "logmel")
    assert features.shape == (3, 1, 32, 9)
    power = torch.einsum("fm,bft->bmt", mel_filters(config), z.abs().square())
    torch.testing.assert_close(features[:, 0], 10 * torch.log10(power), rtol=1e-4, atol=1e-3)


def test_silence_in_decibels_is_the_floor() -> None:
    config = FrontendConfig(kind="logmel", n_fft=256, hop=100, n_frames=9, n_mels=32)
    assert set(Frontend(config)(torch.zeros(1, config.crop_samples)).unique().tolist()) == {-100.0}


def test_mel_filters_are_slaneys_triangles_of_equal_area() -> None:
    """Linear below 1 kHz at 200/3 Hz a mel, then 27 mels per factor of 6.4."""
    config = FrontendConfig()
    edges_mel = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), 130)
    edges = np.where(
        edges_mel < 15, edges_mel * 200 / 3, 1000 * 6.4 ** (np.maximum(edges_mel - 15, 0) / 27)
    )
    frequencies = np.arange(513) * 16000 / 1024
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - low) / (centre - low)
    falling = (high - frequencies[:, None]) / (high - centre)
    expected = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    found = mel_filters(config)
    assert found.shape == (513, 128)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 48000])
@pytest.mark.parametrize("n_fft", [64, 256, 1024, 2048])
def test_as_many_bands_as_are_allowed_leave_none_empty(n_fft: int, sample_rate: int) -> None:
    n_mels = (n_fft // 2 + 1) // 4
    config = FrontendConfig(
        kind="logmel", n_fft=n_fft, hop=n_fft // 2, n_mels=n_mels, sample_rate=sample_rate
    )
    assert (mel_filters(config).sum(dim=0) > 0).all()
