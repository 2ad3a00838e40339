import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import digamma
from scipy.stats import gamma
from torch import Tensor

from mimimi_core import scoring
from mimimi_core.crops import Crops
from mimimi_core.frontend import Frontend
from mimimi_core.network import build_network
from mimimi_core.scoring import ClipScores, fit_threshold, score_clips
from mimimi_core.systems import Classifier, Logits, PooledConv
from tests.audio_fixtures import noise
from tests.model_fixtures import CPU, FRONTEND, NETWORK

N_IDS = 3
# Frames of 32 samples, windows of 8 frames; where the windows of each clip start, in frames.
WINDOWS = {
    100: [0],  # repeated to one crop
    288: [0],
    319: [0],  # a 9th frame needs 32 more samples than 288
    320: [0, 1],
    800: [0, 8, 16],
    1000: [0, 8, 16, 22],
}


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(0)
    network = build_network(NETWORK, N_IDS)
    for _ in range(3):  # moves the running statistics away from 0 and 1
        network(2 * torch.randn(8, 2, 33, 8) + 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [noise(n, n)[:, 0] for n in WINDOWS]


def _score(network: Classifier, clips: list[np.ndarray], *chosen: int) -> np.ndarray:
    crops = Crops.from_waveforms(clips, FRONTEND, CPU)
    return score_clips(network, Frontend(FRONTEND), crops, np.array(chosen), bf16=False)


def _by_definition(network: Classifier, clip: np.ndarray) -> np.ndarray:
    """Mean over windows of -log softmax(total), one window after the other."""
    repeated = torch.from_numpy(np.resize(clip, max(len(clip), 288))).double() / 32768
    nll = []
    for frame in WINDOWS[len(clip)]:
        spectrum = torch.stft(
            repeated[32 * frame : 32 * frame + 288].float(),
            64,
            32,
            window=torch.hann_window(64),
            center=False,
            return_complex=True,
        )
        with torch.no_grad():
            total = network(torch.stack([spectrum.real, spectrum.imag])[None]).total[0]
        nll.append([float(torch.logsumexp(total, 0) - logit) for logit in total])
    return np.mean(nll, axis=0)


def test_scores_are_those_of_the_definition(network: Classifier, clips: list[np.ndarray]) -> None:
    found = _score(network, clips, *range(len(clips)))
    expected = np.stack([_by_definition(network, clip) for clip in clips])
    assert found.dtype == np.float64
    assert found.shape == (len(clips), N_IDS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).min() > 1e-2  # clips do differ, by far more than the tolerance


@pytest.mark.parametrize("windows_per_batch", [1, 5, 1000])
def test_scores_do_not_depend_on_the_batch(
    network: Classifier,
    clips: list[np.ndarray],
    windows_per_batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = _score(network, clips, *range(len(clips)))
    monkeypatch.setattr(scoring, "WINDOWS_PER_BATCH", windows_per_batch)
    chosen = (4, 0, 5, 4)
    np.testing.assert_allclose(_score(network, clips, *chosen), everything[list(chosen)], atol=1e-5)
    for clip in range(len(clips)):
        alone = _score(network, [clips[clip]], 0)
        np.testing.assert_allclose(alone[0], everything[clip], atol=1e-5)


def test_bf16_scores_are_near_those_of_fp32(network: Classifier, clips: list[np.ndarray]) -> None:
    crops = Crops.from_waveforms(clips, FRONTEND, CPU)
    chosen = np.arange(len(clips))
    frontend = Frontend(FRONTEND)
    fp32 = score_clips(network, frontend, crops, chosen, bf16=False)
    bf16 = score_clips(network, frontend, crops, chosen, bf16=True)
    assert bf16.dtype == np.float64
    np.testing.assert_allclose(bf16, fp32, rtol=0.05, atol=0.05)
    assert not np.array_equal(bf16, fp32)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_surer_of_two_sure_clips_has_the_lower_score(bf16: bool) -> None:
    """In fp32 the softmax of either is 1, and both would score 0."""

    class Sure(Classifier):
        """The first id, by a gap of 20 to the others; by one of 30 where it is loud."""

        total_conv = PooledConv(1, N_IDS, 1)

        def forward(self, features: Tensor) -> Logits:
            is_loud = features.abs().amax(dim=(1, 2, 3)) > 1
            gap = torch.where(is_loud, 30.0, 20.0)[:, None] * torch.tensor([1.0, 0.0, 0.0])
            return Logits(magnitude=None, complex=None, total=gap)

    clips = [np.zeros(800, np.int16), noise(800, 800)[:, 0]]
    crops = Crops.from_waveforms(clips, FRONTEND, CPU)
    found = score_clips(Sure().eval(), Frontend(FRONTEND), crops, np.array([0, 1]), bf16=bf16)
    np.testing.assert_allclose(found[:, 0], [2 * np.exp(-20), 2 * np.exp(-30)], rtol=0.01)


def test_a_clip_is_scored_under_the_id_it_claims() -> None:
    nll = np.array([[0.1, 2.0], [0.3, 4.0], [0.5, 6.0]])
    found = ClipScores(clips=np.array([9, 7, 8]), id_index=np.array([1, 0, 1]), nll=nll)
    assert found.scores.tolist() == [2.0, 0.3, 6.0]


@pytest.mark.parametrize("false_alarm_rate", [0.05, 0.1, 0.5])
def test_a_threshold_is_the_quantile_of_the_gamma_fit(false_alarm_rate: float) -> None:
    scores = np.random.default_rng(0).gamma(2.5, 0.4, 60)
    threshold = fit_threshold(scores, false_alarm_rate)
    assert threshold is not None
    # likelihood is largest where log a - digamma(a) = log mean(x) - mean(log x), scale = mean / a
    gap = np.log(scores.mean()) - np.log(scores).mean()
    shape = brentq(lambda a: np.log(a) - digamma(a) - gap, 1e-3, 1e3)
    expected = gamma.ppf(1 - false_alarm_rate, shape, scale=scores.mean() / shape)
    assert threshold.value == pytest.approx(expected, rel=1e-6)
    assert threshold.false_alarm_rate == false_alarm_rate
    assert threshold.n_normals == 60


def test_a_threshold_is_exceeded_as_often_as_asked() -> None:
    rng = np.random.default_rng(1)
    threshold = fit_threshold(rng.gamma(1.5, 2.0, 5000), 0.1)
    assert threshold is not None
    assert (rng.gamma(1.5, 2.0, 5000) > threshold.value).mean() == pytest.approx(0.1, abs=0.02)


def test_one_false_alarm_in_ten_is_the_default() -> None:
    scores = [0.1, 0.2, 0.3, 0.5]
    assert fit_threshold(scores) == fit_threshold(scores, 0.1)


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [0.3],
        [0.3, 0.3, 0.3],
        [0.0, 0.0],
        [0.70711696, 0.707117, 0.707117],
        [0.0, 2.2e-16],  # below what a gamma distribution is fitted to
        [1e-14, 5e-13],
        [1e-14, 1.0000001e-12],
    ],
)
def test_fewer_than_two_different_scores_give_no_threshold(scores: list[float]) -> None:
    assert fit_threshold(scores) is None


@pytest.mark.parametrize("scores", [[0.1, 0.2], [0.0, 0.3, 0.4], [1e-9, 5.0], [0.7, 0.700002]])
def test_two_different_scores_give_a_finite_threshold(scores: list[float]) -> None:
    threshold = fit_threshold(scores)
    assert threshold is not None
    assert np.isfinite(threshold.value)
    assert threshold.value > 0
