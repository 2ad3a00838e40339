import numpy as np
import pytest
import torch
from torch import Tensor

from mimimi_core.config import FrontendConfig
from mimimi_core.mahalanobis import Mahalanobis, shrink
from mimimi_core.training import Training
from tests.model_fixtures import CPU, tone_pack
from tests.system_fixtures import small_config

FRONTEND = FrontendConfig(kind="logmel", n_fft=64, hop=32, n_frames=4, n_mels=4)
IDS = torch.tensor([0, 1, 2] * 40)


def _crops(seed: int = 0) -> Tensor:
    """Levels around each id's own, the bands of a crop depending on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.tensor([[3.0, 0, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0.5], [0.2, 0, 0, 1]])
    x = torch.randn(len(IDS), 4, generator=generator) @ mix.T - 40 + 7 * IDS[:, None]
    wobble = torch.randn(len(IDS), 4, 4, generator=generator)
    return (x[:, :, None] + wobble - wobble.mean(2, keepdim=True))[:, None]


def _fitted(crops: Tensor, ids: Tensor, batch: int = 50) -> Mahalanobis:
    system = Mahalanobis(FRONTEND, 3)
    target = torch.nn.functional.one_hot(ids, 3).float()
    for first in range(0, len(crops), batch):
        part = slice(first, first + batch)
        system.losses(crops[part], target[part])
    return system.eval()


def test_distances_are_those_of_numpy() -> None:
    crops = _crops()
    x = crops.double().mean(3)[:, 0].numpy()
    means = np.stack([x[c == IDS].mean(0) for c in range(3)])
    centred = x - means[IDS]
    covariance = shrink(torch.from_numpy(centred.T @ centred / len(x)), len(x) - 3).numpy()
    inverse = np.linalg.inv(covariance + 0.01 * np.eye(4))
    heard = _crops(seed=1)
    found = _fitted(crops, IDS).nll(heard)
    assert found.shape == (len(IDS), 3)
    assert found.dtype == torch.float32
    for row, crop in zip(found, heard.double().mean(3)[:, 0].numpy(), strict=True):
        expected = [0.5 * (crop - mean) @ inverse @ (crop - mean) for mean in means]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 120])
def test_the_fit_does_not_depend_on_the_batches(batch: int) -> None:
    crops = _crops()
    expected = _fitted(crops, IDS)
    found = _fitted(crops, IDS, batch)
    torch.testing.assert_close(found.means, expected.means)
    torch.testing.assert_close(found.precision, expected.precision)


def test_own_normals_are_as_far_as_their_dimension_says() -> None:
    """Half a squared distance of D standard normals is D / 2 on average."""
    nll = _fitted(_crops(), IDS).nll(_crops(seed=1))
    assert float(nll[torch.arange(len(IDS)), IDS].mean()) == pytest.approx(4 / 2, rel=0.2)
    assert torch.equal(nll.argmin(dim=1), IDS)


def test_an_id_without_clips_is_as_the_mean_of_all() -> None:
    crops, heard = _crops(), IDS != 1
    system = _fitted(crops[heard], IDS[heard])
    torch.testing.assert_close(system.means[1], crops[heard].double().mean((0, 1, 3)))
    assert system.nll(crops).isfinite().all()


def test_fewer_clips_than_bands_and_silence_have_an_inverse() -> None:
    crops = torch.full((2, 1, 4, 4), -100.0)
    assert _fitted(crops, torch.tensor([0, 1])).nll(_crops()).isfinite().all()
    assert _fitted(_crops()[:2], IDS[:2]).nll(_crops()).isfinite().all()
    assert _fitted(_crops()[:1], IDS[:1]).nll(_crops()).isfinite().all()


def test_magnitudes_are_taken_in_decibels() -> None:
    levels = _fitted(_crops(), IDS)
    frontend = FrontendConfig(kind="magnitude", n_fft=16, hop=8, n_frames=4)
    magnitudes = Mahalanobis(frontend, 3)
    x = torch.cat([_crops(), _crops(1), _crops(2)[:, :, :1]], dim=2)  # 9 bins
    magnitudes.losses(10 ** (x / 20), torch.nn.functional.one_hot(IDS, 3).float())
    torch.testing.assert_close(magnitudes.means[:, :4], levels.means, rtol=1e-5, atol=1e-4)


def test_shrinkage_is_chens_for_a_covariance_known_by_heart() -> None:
    """Equation 23 for S = diag(3, 1): trace 4, trace of the square 10, n 10, D 2."""
    share = ((1 - 2 / 2) * 10 + 16) / ((10 + 1 - 2 / 2) * (10 - 16 / 2))
    expected = (1 - share) * torch.diag(torch.tensor([3.0, 1.0])) + share * 2 * torch.eye(2)
    torch.testing.assert_close(shrink(torch.diag(torch.tensor([3.0, 1.0])), 10), expected)


def test_shrinkage_vanishes_with_many_observations_and_is_whole_with_hardly_any() -> None:
    s = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    torch.testing.assert_close(shrink(s, 1e9), s)
    torch.testing.assert_close(shrink(s, 0), 2.5 * torch.eye(2))


def test_it_is_trained_without_a_gradient_and_finds_drifting_tones() -> None:
    training = Training(small_config("mahalanobis"), tone_pack(n_train=20), CPU)
    assert training.optimizer is None
    metrics = training.run_epoch()
    assert metrics["val_auc"] > 0.8
    assert training.id_swap_auc() > 0.8
