"""What training, scoring and detectors rely on, of every system."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mimimi_core.detector import Detector
from mimimi_core.evaluation import build_detector, evaluate
from mimimi_core.network import build_network, network_cost
from mimimi_core.pack import Pack
from mimimi_core.training import Training
from tests.model_fixtures import CPU, Reads, tone_pack
from tests.system_fixtures import SYSTEMS, small_config


@pytest.fixture(scope="module")
def pack() -> Pack:
    return tone_pack()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_two_epochs_give_finite_scores_and_change_them(
    pack: Pack, system: str, precision: str
) -> None:
    training = Training(small_config(system, precision=precision), pack, CPU)
    before = training.scores(pack.select("val"))
    metrics = [training.run_epoch() for _ in range(2)]
    assert training.is_done
    assert np.isfinite([list(m.values())[:5] for m in metrics]).all()
    after = training.scores(pack.select("val"))
    assert after.nll.shape == (12, 2)
    assert np.isfinite(after.nll).all()
    assert not np.allclose(after.nll, before.nll)


TOO_LARGE_OR_ID_FREE = ("mobilenetv2", "autoencoder", "gmade")


@pytest.mark.parametrize("system", [s for s in SYSTEMS if s not in TOO_LARGE_OR_ID_FREE])
def test_ids_that_hum_at_different_pitches_are_told_apart(pack: Pack, system: str) -> None:
    config = small_config(system, epochs=20, lr=0.02, lr_schedule="cosine")
    training = Training(config, pack, CPU)
    for _ in range(20):
        training.run_epoch()
    found = training.scores(pack.select("holdout"))
    assert (found.nll.argmin(axis=1) == found.id_index).mean() == 1


def test_mobilenetv2_learns(pack: Pack) -> None:
    training = Training(small_config("mobilenetv2", epochs=12, lr=0.01), pack, CPU)
    losses = [training.run_epoch()["train_loss"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_resumed_training_is_bit_equal(tmp_path: Path, pack: Pack, system: str) -> None:
    config = small_config(system, epochs=3, patience=1)
    whole = Training(config, pack, CPU)
    expected = []
    while not whole.is_done:
        expected.append(whole.run_epoch())
    first = Training(config, pack, CPU)
    found = [first.run_epoch()]
    first.save(tmp_path / "state.pt", found[0])
    rest = Training.from_checkpoint(tmp_path / "state.pt", pack, CPU)
    assert rest.config == config
    while not rest.is_done:
        found.append(rest.run_epoch())
    assert found == expected
    weights = whole.network.state_dict()
    assert weights.keys() == rest.network.state_dict().keys()
    for name, value in rest.network.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_detector_scores_like_its_training(tmp_path: Path, pack: Pack, system: str) -> None:
    training = Training(small_config(system, epochs=1), pack, CPU)
    training.run_epoch()
    evaluation = evaluate(build_detector([training]), training.pack)
    assert evaluation.test.auc is not None
    values = [t.value for t in evaluation.thresholds.values() if t is not None]
    assert np.isfinite(values).all()
    assert len(values) == 2 or system == "mobilenetv2"  # too slow to tell clips apart yet
    build_detector([training]).save(tmp_path / "fan")
    detector = Detector.load(tmp_path / "fan")
    clips = pack.select("test")
    if detector.device == CPU:
        scores = detector.score_pack(pack, clips).scores
        np.testing.assert_array_equal(scores, evaluation.test_scores.scores)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_steps_of_an_epoch_read_nothing_back(pack: Pack, system: str) -> None:
    training = Training(small_config(system), pack, CPU)
    with Reads() as reads:
        training.train_steps()
    assert reads.n == 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_has_a_cost(system: str) -> None:
    config = small_config(system)
    cost = network_cost(config.network, config.frontend, 3)
    network = build_network(config.network, 3, config.frontend)
    assert cost.n_parameters == sum(p.numel() for p in network.parameters())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval().nll(torch.zeros(1, *config.frontend.feature_shape))
    assert cost.macs == counter.get_total_flops() // 2 > 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_training_step_needs_no_storage_to_be_sized(system: str) -> None:
    config = small_config(system)
    with torch.device("meta"):
        network = build_network(config.network, 3, config.frontend)
        features = torch.empty(5, *config.frontend.feature_shape)
        losses = network.losses(features, torch.empty(5, 3))
    assert "total" in losses
    assert all(loss.shape == () for loss in losses.values())


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_crop_is_judged_apart_from_its_batch(system: str) -> None:
    config = small_config(system)
    torch.manual_seed(0)
    network = build_network(config.network, 3, config.frontend)
    x = torch.rand(5, *config.frontend.feature_shape) + 0.1  # a magnitude is positive
    network.losses(x, torch.eye(3)[[0, 1, 2, 0, 1]])  # moves what is measured in training
    network.eval()
    with torch.inference_mode():
        together = network.nll(x)
        alone = torch.cat([network.nll(x[i : i + 1]) for i in range(5)])
    assert together.shape == (5, 3)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_last_batch_of_one_crop_is_trained_on(system: str) -> None:
    pack = tone_pack(n_train=5)
    metrics = Training(small_config(system, batch_size=3), pack, CPU).run_epoch()  # 3, 3, 3, 1
    assert np.isfinite(metrics["train_loss"])
