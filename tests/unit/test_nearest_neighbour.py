import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mimimi_core.config import FrontendConfig
from mimimi_core.nearest_neighbour import HELD, NearestNeighbour
from mimimi_core.training import Training
from tests.model_fixtures import CPU, tone_pack
from tests.system_fixtures import small_config

FRONTEND = FrontendConfig(kind="logmel", n_fft=64, hop=32, n_frames=4, n_mels=4)
IDS = torch.tensor([0, 1, 2, 1] * 15)


def _crops(seed: int = 0, n: int = len(IDS)) -> Tensor:
    """Levels around -60 dB, by turns in one of two clouds."""
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x - 60 + 9 * (torch.arange(n) % 2)[:, None, None, None]


def _hear(system: NearestNeighbour, crops: Tensor, ids: Tensor, batch: int = 7) -> float:
    """Loss of the last batch."""
    target = torch.nn.functional.one_hot(ids, len(system.n_of_id)).float()
    loss = 0.0
    for part, weights in zip(crops.split(batch), target.split(batch), strict=True):
        loss = float(system.losses(part, weights)["total"])
    return loss


def _expected(crops: Tensor, ids: Tensor, heard: Tensor) -> np.ndarray:
    """scikit-learn's distances `(B, C)`, per band."""
    x, queries = (c.double().mean(dim=3)[:, 0].numpy() for c in (crops, heard))
    of_id = [NearestNeighbors(n_neighbors=1).fit(x[(ids == c).numpy()]) for c in range(3)]
    return np.hstack([nearest.kneighbors(queries)[0] for nearest in of_id]) / np.sqrt(4)


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_distances_are_those_of_scikit_learn_whatever_the_batches(batch: int) -> None:
    system = NearestNeighbour(FRONTEND, 3)
    _hear(system, _crops(), IDS, batch)
    heard = _crops(seed=1)
    found = system.eval().nll(heard)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, _expected(_crops(), IDS, heard), rtol=1e-4)


def test_a_crop_that_was_heard_is_at_no_distance_from_its_id() -> None:
    system = NearestNeighbour(FRONTEND, 3)
    _hear(system, _crops(), IDS)
    own = system.nll(_crops())[torch.arange(len(IDS)), IDS]
    assert own.max() < 1e-4  # dB
    assert system.nll(_crops()).max() > 0.1


@pytest.mark.parametrize("batch", [1, 4, 60])
def test_it_holds_the_newest_crops_of_each_id_and_grows_no_further(batch: int) -> None:
    """Of 15, 30 and 15 crops of three ids the last 8 each."""
    system = NearestNeighbour(FRONTEND, 3, n_held=8)
    size = sum(b.numel() for b in system.buffers())
    _hear(system, _crops(), IDS, batch)
    assert sum(b.numel() for b in system.buffers()) == size
    assert system.n_of_id.tolist() == [15, 30, 15]
    newest = torch.cat([torch.nonzero(c == IDS)[-8:, 0] for c in range(3)])
    heard = _crops(seed=1)
    expected = _expected(_crops()[newest], IDS[newest], heard)
    np.testing.assert_allclose(system.nll(heard), expected, rtol=1e-4)


def test_the_loss_is_the_distance_from_what_was_heard_before() -> None:
    system = NearestNeighbour(FRONTEND, 3)
    assert _hear(system, _crops(), IDS, batch=60) == 0  # before all was nothing
    heard = _crops(seed=1)
    expected = _expected(_crops(), IDS, heard)[np.arange(len(IDS)), IDS]
    assert _hear(system, heard, IDS, batch=60) == pytest.approx(expected.mean(), rel=1e-4)


def test_an_id_without_clips_is_as_near_as_the_nearest_of_all() -> None:
    system, is_heard = NearestNeighbour(FRONTEND, 3), IDS != 1
    _hear(system, _crops()[is_heard], IDS[is_heard])
    found = system.nll(_crops(seed=1))
    torch.testing.assert_close(found[:, 1], found[:, [0, 2]].amin(dim=1))
    assert torch.equal(NearestNeighbour(FRONTEND, 3).nll(_crops()), torch.zeros(60, 3))


def test_magnitudes_are_taken_in_decibels() -> None:
    frontend = FrontendConfig(kind="magnitude", n_fft=16, hop=8, n_frames=4)
    system = NearestNeighbour(frontend, 2)
    magnitudes = 10 ** (torch.full((2, 1, 9, 4), -40.0) / 20)
    _hear(system, magnitudes, torch.tensor([0, 1]))
    torch.testing.assert_close(system.nll(2 * magnitudes), torch.full((2, 2), 6.0206))


def test_a_sound_that_is_no_number_has_no_score() -> None:
    system = NearestNeighbour(FRONTEND, 3)
    _hear(system, _crops(), IDS)
    assert system.nll(_crops() * torch.nan).isnan().all()


def test_it_is_trained_without_a_gradient_and_finds_drifting_tones() -> None:
    training = Training(small_config("nearest neighbour"), tone_pack(n_train=20), CPU)
    assert training.optimizer is None
    assert training.run_epoch()["val_auc"] > 0.8
    assert training.id_swap_auc() > 0.8
    assert training.network.state_dict()["held"].shape == (2, HELD, 8)
