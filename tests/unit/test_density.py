"""The autoencoder of the DCASE baseline, and the group-masked autoencoder."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimimi_core.config import AugmentConfig, ConfigError, ConflictError, NetworkKind, TrialConfig
from mimimi_core.density import Autoencoder, GroupMade, stack_frames
from mimimi_core.network import build_network, network_cost
from mimimi_core.pack import Pack
from mimimi_core.training import Training, objective_of
from tests.model_fixtures import CPU, resplit, tone_pack
from tests.system_fixtures import small_config

KINDS: list[NetworkKind] = ["autoencoder", "gmade"]


def _params(kind: str) -> dict[str, object]:
    return {"frontend.kind": "logmel", "network.kind": kind}


def _levels(*shape: int, seed: int = 0) -> Tensor:
    return 6 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) - 40


def test_vectors_are_consecutive_frames_one_after_the_other() -> None:
    features = torch.arange(2 * 3 * 7.0).reshape(2, 1, 3, 7)
    vectors = stack_frames(features)
    assert vectors.shape == (2, 3, 15)
    for b in range(2):
        for first in range(3):
            frames = [features[b, 0, :, first + i] for i in range(5)]
            assert torch.equal(vectors[b, first], torch.cat(frames))


def test_the_autoencoder_is_the_dcase_baseline() -> None:
    """Keras counts 269,992: moving means and variances are parameters to it."""
    network = Autoencoder(128, 4)
    linear = [(m.in_features, m.out_features) for m in network.modules() if type(m) is nn.Linear]
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    assert linear == list(zip(widths, widths[1:], strict=False))
    trained = sum(a * b + b for a, b in linear) + 2 * (8 * 128 + 8)
    running = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert trained + running == 269_992
    config = TrialConfig.from_params(_params("autoencoder"))
    cost = network_cost(config.network, config.frontend, 4)
    assert cost.n_parameters == trained == 267_928
    n_vectors = 60
    assert cost.macs == n_vectors * sum(a * b for a, b in linear)


def test_the_autoencoders_score_is_the_mean_squared_error_of_five_frames() -> None:
    torch.manual_seed(0)
    network = Autoencoder(8, 3)
    features = _levels(2, 1, 8, 9)
    loss = network.losses(features, torch.eye(3)[[0, 1]])["total"]
    assert loss.requires_grad
    network.eval()
    with torch.no_grad():
        found = network.nll(features)
        for b in range(2):
            errors = []
            for first in range(5):
                vector = features[b, 0, :, first : first + 5].T.reshape(1, 40)
                errors.append((network.layers(vector) - vector).square().mean())
            torch.testing.assert_close(found[b], torch.stack(errors).mean().expand(3))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_not_for_levels_in_decibels(kind: NetworkKind) -> None:
    config = TrialConfig.from_params(_params(kind))
    torch.manual_seed(0)
    network = build_network(config.network, 2, config.frontend).eval()
    x = _levels(1, 1, 128, 8)
    with torch.no_grad():
        plain = network.nll(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network.nll(x), plain)


def _random_made(n_mels: int) -> GroupMade:
    """Weights large enough that any path that is not masked shows."""
    torch.manual_seed(1)
    network = GroupMade(n_mels, 2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.mark.parametrize("moved", range(5))
def test_no_output_of_the_made_depends_on_its_own_or_a_later_frame(moved: int) -> None:
    n_mels = 3
    network = _random_made(n_mels)
    x = torch.randn(4, 5 * n_mels, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    network.double()
    changed = x.clone()
    changed[:, moved * n_mels : (moved + 1) * n_mels] += 1.0
    with torch.no_grad():
        difference = (network.layers(changed) - network.layers(x)).abs()
    by_frame = difference.reshape(4, 2, 5, n_mels).amax(dim=(0, 1, 3))
    assert by_frame[: moved + 1].max() == 0
    assert (by_frame[moved + 1 :] > 1e-6).all()  # and on all earlier frames it does


def test_every_band_of_an_earlier_frame_reaches_every_band_of_a_later_one() -> None:
    n_mels = 3
    network = _random_made(n_mels)
    x = torch.zeros(1, 5 * n_mels)
    jacobian = torch.autograd.functional.jacobian(network.layers, x)[0, :, 0]
    of_frames = jacobian.reshape(2, 5, n_mels, 5, n_mels)
    for to in range(5):
        for source in range(5):
            reached = of_frames[:, to, :, source] != 0
            assert bool(reached.all()) is (source < to)
            assert bool(reached.any()) is (source < to)


def test_the_made_is_a_density() -> None:
    """The product of one normal distribution per frame, so the last frame integrates away."""
    network = _random_made(1)
    mean, variance = torch.tensor([-40.0, -41, -39, -40, -42]), torch.tensor([9.0, 4, 16, 9, 1])
    network.mean, network.variance = mean, variance
    x, spread = _levels(1, 5), (variance + 1).sqrt()  # dB, so that no band of silence is blown up
    with torch.no_grad():
        shift, log_gain = network.layers((x - mean) / spread)[0].double().chunk(2)
        sigma = (1 + (spread * log_gain.exp()).square()).sqrt()  # at least 1 dB
        factors = torch.distributions.Normal(mean + spread * shift, sigma).log_prob(x[0])
        assert float(-network.vector_nll(x)) == pytest.approx(float(factors.sum()), rel=1e-4)

        grid = torch.linspace(-200, 120, 64_001)
        last = x.repeat(len(grid), 1)
        last[:, 4] = grid
        marginal = (-network.vector_nll(last).double()).exp().sum() * (grid[1] - grid[0])
    assert float(marginal.log()) == pytest.approx(float(factors[:4].sum()), abs=1e-3)


def test_the_made_learns_what_a_frame_says_of_the_next() -> None:
    """The second frame repeats the first: given it, its level is nearly sure."""
    torch.manual_seed(0)
    network = GroupMade(2, 2)
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def batch() -> Tensor:
        first = 8 * torch.randn(128, 2, generator=generator) - 40
        others = 8 * torch.randn(128, 6, generator=generator) - 40
        return torch.cat([first, first, others], dim=1)

    for _ in range(60):
        optimizer.zero_grad()
        network.vector_nll(batch()).mean().backward()
        optimizer.step()
    network.eval()
    x = batch()
    swapped = x.clone()
    swapped[:, 2:4] = x[:, 2:4].roll(1, dims=0)  # as likely a level, but not after this frame
    with torch.no_grad():
        gap = network.vector_nll(swapped).mean() - network.vector_nll(x).mean()
    assert gap > 1


def test_the_made_standardises_by_all_training_batches() -> None:
    network = GroupMade(2, 2)
    first, second = _levels(50, 10, seed=1), 3 * _levels(50, 10, seed=2)
    network.vector_nll(first)
    torch.testing.assert_close(network.mean, first.mean(0))
    network.vector_nll(second)
    torch.testing.assert_close(network.mean, torch.cat([first, second]).mean(0))
    torch.testing.assert_close(network.variance, (first.var(0) + second.var(0)) / 2)
    network.eval()
    before = network.mean.clone()
    network.vector_nll(_levels(5, 10))
    assert torch.equal(network.mean, before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_has_the_same_score(kind: NetworkKind) -> None:
    config = TrialConfig.from_params(_params(kind))
    network = build_network(config.network, 3, config.frontend).eval()
    with torch.no_grad():
        found = network.nll(_levels(2, 1, 128, 8))
    assert found.shape == (2, 3)
    assert torch.equal(found, found[:, :1].expand(2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_one_machine_id_alone_is_enough(kind: NetworkKind) -> None:
    metrics = Training(small_config(kind), tone_pack(n_ids=1), CPU).run_epoch()
    assert 0 <= metrics["val_auc"] <= 1


@pytest.fixture(scope="module")
def pack() -> Pack:
    return tone_pack()


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_ids_are_no_objective_of_a_system_that_knows_none(
    pack: Pack, kind: NetworkKind
) -> None:
    config = small_config(kind)
    message = f"fan: the objective id_swap_auc .* '{kind}' gives the same under all: label some"
    with pytest.raises(ConfigError, match=message):
        Training(config, pack, CPU, objective="id_swap_auc")
    no_anomalies = resplit(pack, np.flatnonzero(pack.labels == 1), "unused")
    assert objective_of(no_anomalies) == "id_swap_auc"  # of a search, whose kinds may vary
    training = Training(config, no_anomalies, CPU)
    assert training.objective == "normal_log_likelihood"
    metrics = [training.run_epoch() for _ in range(2)]
    assert all("normal_log_likelihood" in m for m in metrics)
    assert not any("id_swap_auc" in m for m in metrics)


@pytest.mark.parametrize("kind", [*KINDS, "mahalanobis", "nearest_neighbour"])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"frontend.kind": "complex"}, "frontend.kind must be .*'logmel' for network.kind"),
        ({"augment.mixing": True}, "augment.mixing must be false for network.kind"),
        ({"network.head": "arcface"}, "network.head must be 'linear' for network.kind"),
        ({"network.head": "noisy_arcmix"}, "network.head must be 'linear' for network.kind"),
    ],
)
def test_what_classifies_nothing_has_no_settings_of_classifiers(
    kind: str, params: dict[str, object], message: str
) -> None:
    with pytest.raises(ConflictError, match=message):
        TrialConfig.from_params(_params(kind) | params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_must_hold_more_than_one_vector(kind: str) -> None:
    with pytest.raises(ConflictError, match="128 x 5 .* too small for network.kind"):
        TrialConfig.from_params(_params(kind) | {"frontend.n_frames": 5})
    config = TrialConfig.from_params(_params(kind) | {"frontend.n_frames": 6})
    network = build_network(config.network, 2, config.frontend)
    network.losses(_levels(1, 1, 128, 6), torch.eye(2)[:1])["total"].backward()


def test_the_baseline_tells_the_tones_of_the_test_pack_apart() -> None:
    """Anomalies drift to another pitch, so a reconstruction must find them."""
    config = small_config("autoencoder", epochs=40, lr=0.02, lr_schedule="cosine")
    training = Training(config, tone_pack(), CPU)
    metrics = [training.run_epoch() for _ in range(40)]
    assert metrics[-1]["train_loss"] < 0.1 * metrics[0]["train_loss"]
    assert metrics[-1]["val_auc"] > 0.9


def test_augmentations_of_the_spectrum_reach_the_bands() -> None:
    config = small_config("gmade")
    assert not config.augment.mixing
    noisy = TrialConfig(
        frontend=config.frontend,
        network=config.network,
        augment=AugmentConfig(noise=True, mask=True, shift=True),
        train=config.train,
    )
    metrics = Training(noisy, tone_pack(), CPU).run_epoch()
    assert np.isfinite(metrics["train_loss"])
