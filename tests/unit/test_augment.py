import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mimimi_core import augment
from mimimi_core.config import AugmentConfig
from mimimi_core.training import Training
from tests.model_fixtures import CPU, FRONTEND, make_pack, tiny_config, tone_pack

B, C, F, T = 400, 4, 33, 8
ALL_PRESENT = torch.ones(C, dtype=torch.bool)
IDS = torch.arange(B) % C


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _waveforms() -> Tensor:
    return torch.randn(B, 288, generator=_generator(9)) * torch.linspace(0.01, 1, B)[:, None]


def _spectra() -> Tensor:
    return torch.randn(B, 2, F, T, generator=_generator(9)) + 5  # nowhere 0


KINDS: dict[str, tuple[Callable[[], Tensor], Callable[[float, torch.Generator], Tensor]]] = {
    "mixing": (
        lambda: torch.nn.functional.one_hot(IDS, C).float(),
        lambda p, g: augment.mixing_weights(IDS, ALL_PRESENT, p, 1.0, g),
    ),
    "noise": (_waveforms, lambda p, g: augment.add_noise(_waveforms(), p, 0.1, g)),
    "mask": (_spectra, lambda p, g: augment.mask_bands(_spectra(), p, 2, 8, g)),
    "shift": (_spectra, lambda p, g: augment.shift_bins(_spectra(), p, 3, 0.5, g)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_chance_of_zero_changes_nothing(kind: str) -> None:
    plain, augmented = KINDS[kind]
    assert torch.equal(augmented(0.0, _generator()), plain())


@pytest.mark.parametrize("kind", KINDS)
def test_a_chance_p_changes_about_p_of_the_crops(kind: str) -> None:
    plain, augmented = KINDS[kind]
    changed = (augmented(0.3, _generator()) != plain()).flatten(1).any(dim=1).float().mean()
    # a shift by 0 bins is one in seven and changes nothing
    expected = 0.3 * (6 / 7 if kind == "shift" else 1)
    assert changed == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_alone_decides(kind: str) -> None:
    _, augmented = KINDS[kind]
    torch.manual_seed(1)
    first = augmented(0.5, _generator(1))
    torch.manual_seed(2)
    assert torch.equal(augmented(0.5, _generator(1)), first)
    assert not torch.equal(augmented(0.5, _generator(2)), first)


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 50.0])
def test_mixing_weights_sum_to_one_and_leave_absent_ids_out(alpha: float) -> None:
    present = torch.tensor([True, False, True, True])
    ids = torch.tensor([0, 2, 3] * 100)
    weights = augment.mixing_weights(ids, present, 0.7, alpha, _generator())
    assert weights.shape == (300, C)
    assert weights.isfinite().all()
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(300))
    assert weights[:, 1].abs().max() == 0
    assert (weights[:, [0, 2, 3]].max(dim=0).values > 0.5).all()


def test_the_smallest_concentration_mixes_nearly_one_id() -> None:
    for n_ids in (2, 4):
        ids = torch.zeros(100_000, dtype=torch.int64)
        present = torch.ones(n_ids, dtype=torch.bool)
        weights = augment.mixing_weights(ids, present, 1.0, 0.1, _generator())
        AugmentConfig(mixing_alpha=0.1)
        is_even = weights.max(dim=1).values < 1.01 / n_ids
        assert is_even.float().mean() < 0.01


def test_mixing_weights_are_dirichlets() -> None:
    """Mean 1 / K and variance (K - 1) / K^2 / (K alpha + 1) of each of K weights."""
    for alpha in (0.3, 1.0, 8.0):
        ids = torch.zeros(20_000, dtype=torch.int64)
        weights = augment.mixing_weights(ids, ALL_PRESENT, 1.0, alpha, _generator())
        variance = (C - 1) / C**2 / (C * alpha + 1)
        np.testing.assert_allclose(weights.mean(dim=0), 1 / C, atol=0.01)
        np.testing.assert_allclose(weights.var(dim=0), variance, rtol=0.05)


def test_mixing_is_exact_in_the_complex_domain() -> None:
    """Clips that repeat every hop are the same at any frame: all crops of an id are one vector."""
    rng = np.random.default_rng(5)
    periods = rng.integers(-9000, 9000, (3, FRONTEND.hop))
    id_index = [0, 0, 1, 2, 2, 2, 0, 1]
    clips = [np.resize(periods[i], 800) for i in id_index]
    pack = make_pack(clips, id_index, [0] * 8, ["train"] * 6 + ["holdout"] * 2)
    config = tiny_config(AugmentConfig(mixing=True, mixing_p=1.0))
    training = Training(config, pack, CPU)
    spectra, weights = training.batches.draw(torch.arange(6).repeat(5), _generator())

    window = torch.hann_window(FRONTEND.n_fft)
    crops = torch.from_numpy(np.stack([np.resize(p, FRONTEND.crop_samples) for p in periods]))
    alone = torch.stft(
        crops.float() / 32768,
        FRONTEND.n_fft,
        FRONTEND.hop,
        window=window,
        center=False,
        return_complex=True,
    )
    expected = torch.einsum("bc,cft->bft", weights.to(alone.dtype), alone)
    found = torch.complex(spectra[:, 0], spectra[:, 1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (weights > 0).all()
    assert (weights.max(dim=1).values < 1).all()


def test_a_crop_that_is_not_mixed_is_itself() -> None:
    pack = tone_pack(n_ids=3)
    training = Training(tiny_config(AugmentConfig(mixing=True, mixing_p=0.0)), pack, CPU)
    clips = torch.from_numpy(pack.select("train"))
    spectra, weights = training.batches.draw(clips, _generator())
    itself = training.crops.random(clips, _generator())
    torch.testing.assert_close(spectra, training.frontend(itself), rtol=0, atol=0)
    assert torch.equal(weights.argmax(dim=1), torch.from_numpy(pack.id_index)[clips])
    assert set(weights.unique().tolist()) == {0.0, 1.0}


def test_noise_is_white_and_no_louder_than_its_level() -> None:
    waveforms, level = _waveforms(), 0.2
    added = augment.add_noise(waveforms, 1.0, level, _generator()) - waveforms
    ratio = (added.square().mean(dim=1) / waveforms.square().mean(dim=1)).sqrt()
    sampling_error = 1 + 5 / (2 * 288) ** 0.5
    assert ratio.max() <= level * sampling_error
    assert ratio.max() > 0.9 * level
    assert ratio.min() < 0.1 * level
    assert ratio.mean() == pytest.approx(level / 2, rel=0.1)
    loudest = added[ratio > level / 2]
    power = torch.fft.rfft(loudest / loudest.std(dim=1, keepdim=True)).abs().square().mean(dim=0)
    assert power[1:-1].max() < 1.7 * power[1:-1].mean()  # no frequency stands out


def test_noise_on_silence_is_silence() -> None:
    assert augment.add_noise(torch.zeros(3, 288), 1.0, 0.5, _generator()).abs().max() == 0


@pytest.mark.parametrize(("bands", "width"), [(1, 1), (1, 6), (3, 4)])
def test_masks_are_whole_bins_of_bounded_width(bands: int, width: int) -> None:
    spectra = _spectra()
    masked = augment.mask_bands(spectra, 1.0, bands, width, _generator())
    is_zero = masked == 0
    of_bin = is_zero[:, 0, :, 0]
    assert torch.equal(is_zero, of_bin[:, None, :, None].expand_as(is_zero))
    assert torch.equal(masked[~is_zero], spectra[~is_zero])
    n_masked = of_bin.sum(dim=1)
    assert n_masked.min() >= 1
    assert n_masked.max() <= bands * width
    assert n_masked.max() >= width
    edges = torch.diff(of_bin.int(), prepend=torch.zeros(B, 1, dtype=torch.int32), dim=1)
    assert (edges == 1).sum(dim=1).max() <= bands
    assert of_bin.any(dim=0).all()  # every bin is reached


def test_a_shift_moves_whole_bins_and_never_wraps() -> None:
    spectra, farthest = _spectra(), 3
    # with a hop as long as the window, a shift turns no phase
    shifted = augment.shift_bins(spectra, 1.0, farthest, 1.0, _generator())
    seen = set()
    for before, after in zip(spectra, shifted, strict=True):
        fits = []
        for shift in range(-farthest, farthest + 1):
            expected = torch.zeros_like(before)
            if shift >= 0:
                expected[:, shift:] = before[:, : F - shift]
            else:
                expected[:, :shift] = before[:, -shift:]
            if torch.equal(after, expected):
                fits.append(shift)
        assert len(fits) == 1
        seen.add(fits[0])
    assert seen == set(range(-farthest, farthest + 1))


@pytest.mark.parametrize(("n_fft", "hop"), [(64, 32), (64, 16), (64, 24), (1024, 512)])
def test_a_shift_is_that_of_the_signal_in_every_frame(n_fft: int, hop: int) -> None:
    """Against the transform of the analytic signal, times a carrier of so many bins."""
    n_bins, farthest = n_fft // 2 + 1, 3
    n_samples = n_fft + hop * (T - 1)
    # analytic: no negative frequencies, and none that a shift would move over an edge
    bins = torch.arange(n_samples) * n_fft / n_samples
    is_kept = (bins > farthest + 3) & (bins < n_bins - farthest - 4)
    noise = torch.randn(64, n_samples, dtype=torch.complex128, generator=_generator(1))
    signal = torch.fft.ifft(torch.fft.fft(noise) * is_kept)

    def transform(x: Tensor) -> Tensor:
        window = torch.hann_window(n_fft, dtype=torch.float64)
        y = torch.stft(
            x, n_fft, hop, window=window, center=False, onesided=False, return_complex=True
        )
        return torch.view_as_real(y[:, :n_bins]).permute(0, 3, 1, 2)

    plain = transform(signal)
    shifted = augment.shift_bins(plain.float(), 1.0, farthest, hop / n_fft, _generator())
    time = torch.arange(n_samples) / n_fft
    carried = {
        k: transform(signal * torch.exp(2j * torch.pi * k * time))
        for k in range(-farthest, farthest + 1)
    }
    seen = set()
    for crop in range(len(shifted)):
        gaps = {k: float((shifted[crop] - x[crop]).abs().max()) for k, x in carried.items()}
        nearest = min(gaps, key=lambda k: gaps[k])
        assert gaps[nearest] < 0.01 * float(plain[crop].abs().max())
        seen.add(nearest)
    assert seen == set(range(-farthest, farthest + 1))


def test_batches_shift_by_their_own_hop_and_window() -> None:
    config = tiny_config(AugmentConfig(shift=True, shift_p=1.0))
    config = dataclasses.replace(config, frontend=dataclasses.replace(FRONTEND, hop=24))
    batches = Training(config, tone_pack(), CPU).batches
    waveforms = _waveforms()[:, : config.frontend.crop_samples]
    plain = batches.frontend.transform(waveforms)
    expected = augment.shift_bins(plain, 1.0, config.augment.shift_bins, 24 / 64, _generator())
    assert torch.equal(batches.features(waveforms, config.augment, _generator()), expected)
