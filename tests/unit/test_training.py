import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mimimi_core.checkpoint import CheckpointError
from mimimi_core.clips import find_clips
from mimimi_core.config import AugmentConfig, ConfigError, TrainConfig
from mimimi_core.pack import Pack, open_pack, pack_clips
from mimimi_core.systems import Logits, Loss
from mimimi_core.training import (
    NonFiniteLossError,
    OtherTrainingError,
    Training,
    compiled,
    held_out_normals,
    objective_of,
)
from tests.audio_fixtures import write_dcase2020
from tests.model_fixtures import AUGMENT_ALL, CPU, Reads, resplit, tiny_config, tone_pack
from tests.system_fixtures import Constant, small_config


@pytest.fixture(scope="module")
def pack() -> Pack:
    return tone_pack()


def _weights(training: Training) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in training.network.state_dict().items()}


def _are_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("augment", [AugmentConfig(), AUGMENT_ALL], ids=["plain", "augmented"])
@pytest.mark.parametrize("lr_schedule", ["constant", "cosine"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, pack: Pack, precision: str, augment: AugmentConfig, lr_schedule: str
) -> None:
    config = tiny_config(augment, precision=precision, lr_schedule=lr_schedule, weight_decay=0.01)
    whole = Training(config, pack, CPU)
    expected = [whole.run_epoch() for _ in range(4)]

    first = Training(config, pack, CPU)
    found = [first.run_epoch() for _ in range(2)]
    first.save(tmp_path / "state.pt", found[-1])
    torch.manual_seed(12345)  # whatever else a process drew must not matter
    rest = Training(config, pack, CPU)
    assert rest.restore(tmp_path / "state.pt") == found[-1]
    assert rest.epoch == 2
    found += [rest.run_epoch() for _ in range(2)]

    assert found == expected
    assert _are_equal(_weights(rest), _weights(whole))
    for mine, theirs in zip(
        rest.optimizer.state.values(), whole.optimizer.state.values(), strict=True
    ):
        assert _are_equal(mine, theirs)


def test_a_checkpoint_alone_continues_with_its_own_settings(tmp_path: Path, pack: Pack) -> None:
    config = tiny_config(AUGMENT_ALL, lr=0.01, seed=3)
    training = Training(config, pack, CPU)
    training.save(tmp_path / "state.pt", training.run_epoch())
    continued = Training.from_checkpoint(tmp_path / "state.pt", pack)
    assert continued.config == config
    assert continued.epoch == 1
    if continued.device == CPU:
        assert continued.run_epoch() == training.run_epoch()


def test_a_checkpoint_of_other_machines_is_refused(tmp_path: Path, pack: Pack) -> None:
    training = Training(tiny_config(), pack, CPU)
    training.save(tmp_path / "state.pt", {})
    others = dataclasses.replace(pack, machine_ids=("id_04", "id_06"))
    with pytest.raises(CheckpointError, match=r"state\.pt.*id_00.*id_02.*id_04.*id_06"):
        Training(tiny_config(), others, CPU).restore(tmp_path / "state.pt")


def test_a_checkpoint_of_other_settings_or_clips_is_refused(tmp_path: Path, pack: Pack) -> None:
    training = Training(tiny_config(lr=0.5), pack, CPU)
    training.save(tmp_path / "state.pt", {})
    with pytest.raises(OtherTrainingError, match=r"train\.lr is 0\.5 there, 0\.25 here"):
        Training(tiny_config(lr=0.25), pack, CPU).restore(tmp_path / "state.pt")
    others = dataclasses.replace(pack, data_hash="0123456789abcdef")
    with pytest.raises(OtherTrainingError, match=r"data_hash is .* there, .0123456789abcdef. here"):
        Training(tiny_config(lr=0.5), others, CPU).restore(tmp_path / "state.pt")


def test_the_seed_decides_the_bits(pack: Pack) -> None:
    def train(seed: int) -> Training:
        training = Training(tiny_config(AUGMENT_ALL, seed=seed), pack, CPU)
        training.run_epoch()
        return training

    first, again, other = train(1), train(1), train(2)
    assert _are_equal(_weights(first), _weights(again))
    assert not _are_equal(_weights(first), _weights(other))


def test_the_largest_seed_trains(pack: Pack) -> None:
    with pytest.raises(ConfigError, match=r"train\.seed must be in"):
        tiny_config(seed=2**48)
    assert np.isfinite(Training(tiny_config(seed=2**48 - 1), pack, CPU).run_epoch()["train_loss"])


def test_the_seed_decides_both_the_start_and_what_is_drawn(pack: Pack) -> None:
    first, other = (Training(tiny_config(seed=seed), pack, CPU) for seed in (1, 2))
    assert not _are_equal(_weights(first), _weights(other))
    other.network.load_state_dict(first.network.state_dict())
    assert first.run_epoch()["train_loss"] != other.run_epoch()["train_loss"]


def test_a_training_leaves_the_global_generator_alone(pack: Pack) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Training(tiny_config(AUGMENT_ALL), pack, CPU).run_epoch()
    assert torch.equal(torch.rand(3), expected)


def test_epochs_differ_in_what_they_draw(pack: Pack) -> None:
    training = Training(tiny_config(lr=1e-12), pack, CPU)  # too small to change a weight
    losses = {training.run_epoch()["train_loss"] for _ in range(4)}
    assert len(losses) == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_separable_tones_are_learned(pack: Pack, precision: str) -> None:
    training = Training(tiny_config(precision=precision, lr=0.01, epochs=8), pack, CPU)
    metrics = [training.run_epoch() for _ in range(8)]
    assert metrics[-1]["train_loss"] < 0.5 * metrics[0]["train_loss"]
    found = training.scores(pack.select("holdout"))
    assert (found.nll.argmin(axis=1) == found.id_index).all()


def test_an_epoch_reports_loss_aucs_and_their_interval(pack: Pack) -> None:
    metrics = Training(tiny_config(), pack, CPU).run_epoch()
    of_ids = [metrics.pop("val_auc/id_00"), metrics.pop("val_auc/id_02")]
    assert metrics["val_auc"] == pytest.approx(np.mean(of_ids))
    assert metrics.pop("val_auc_low") <= metrics["val_auc"] <= metrics.pop("val_auc_high")
    assert set(metrics) == {"train_loss", "val_auc", "val_pauc"}


@pytest.mark.parametrize("split", ["holdout", "val", "test"])
def test_only_training_clips_reach_the_weights(pack: Pack, split: str) -> None:
    samples = pack.samples.copy()
    for clip in pack.select(split):
        start, length = pack.starts[clip], pack.lengths[clip]
        samples[start : start + length] = np.arange(length) % 32767
    changed = dataclasses.replace(pack, samples=samples)
    trainings = [Training(tiny_config(AUGMENT_ALL), p, CPU) for p in (pack, changed)]
    for training in trainings:
        training.run_epoch()
    assert _are_equal(*map(_weights, trainings))
    clips = pack.select(split)
    assert not np.array_equal(*(training.scores(clips).nll for training in trainings))


def test_a_training_clip_does_reach_the_weights(pack: Pack) -> None:
    samples = pack.samples.copy()
    clip = pack.select("train")[-1]
    samples[pack.starts[clip] : pack.starts[clip] + pack.lengths[clip]] = 0
    trainings = [
        Training(tiny_config(), p, CPU) for p in (pack, dataclasses.replace(pack, samples=samples))
    ]
    for training in trainings:
        training.run_epoch()
    assert not _are_equal(*map(_weights, trainings))


def test_every_training_clip_is_drawn_once_an_epoch(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tiny_config(batch_size=4), pack, CPU)
    drawn: list[int] = []
    random = training.crops.random

    def spy(clips: Tensor, generator: torch.Generator) -> Tensor:
        drawn.extend(clips.tolist())
        return random(clips, generator)

    monkeypatch.setattr(training.crops, "random", spy)
    training.run_epoch()
    assert sorted(drawn) == pack.select("train").tolist()
    assert drawn != sorted(drawn)


def test_a_last_batch_of_one_crop_is_trained_on() -> None:
    pack = tone_pack(n_train=5)
    training = Training(tiny_config(batch_size=3), pack, CPU)  # 10 clips: 3, 3, 3, 1
    metrics = training.run_epoch()
    assert np.isfinite(metrics["train_loss"])
    norms = [m for m in training.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {int(m.num_batches_tracked) for m in norms} == {4}


@pytest.mark.parametrize("augment", [AugmentConfig(), AUGMENT_ALL], ids=["plain", "augmented"])
def test_an_id_without_training_clips_is_no_obstacle(augment: AugmentConfig) -> None:
    pack = tone_pack(n_ids=3)
    of_id = np.flatnonzero((pack.splits == "train") & (pack.id_index == 1))
    pack = resplit(pack, of_id, "holdout")
    training = Training(tiny_config(augment), pack, CPU)
    metrics = training.run_epoch()
    assert np.isfinite(metrics["train_loss"])
    assert [name for name in metrics if "/" in name] == ["val_auc/id_00", "val_auc/id_04"]
    of_others = [metrics["val_auc/id_00"], metrics["val_auc/id_04"]]
    assert metrics["val_auc"] == pytest.approx(np.mean(of_others))
    clips = torch.from_numpy(pack.select("train"))
    _, target = training.batches.draw(clips, torch.Generator().manual_seed(0))
    assert target[:, 1].abs().max() == 0  # no crop is said to hold the id that none can hold
    assert (target[:, [0, 2]].max(dim=0).values > 0.5).all()


def test_no_training_clips_at_all_are_refused(pack: Pack) -> None:
    labelled_only = resplit(pack, pack.select("train"), "val")
    with pytest.raises(ConfigError, match="fan.*no normal clip to train on"):
        Training(tiny_config(), labelled_only, CPU)


def test_one_machine_id_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 machine ids"):
        Training(tiny_config(), tone_pack(n_ids=1), CPU)


def test_a_classifier_needs_training_clips_of_two_ids(pack: Pack) -> None:
    """Of one alone it would learn to say its name, whatever it hears."""
    of_id = np.flatnonzero((pack.splits == "train") & (pack.id_index == 1))
    bare = resplit(pack, of_id, "unused")
    wanted = (
        r"fan: network\.kind 'deep_encoder' .* at least 2 machine ids, got id_00 of id_00, id_02"
    )
    with pytest.raises(ConfigError, match=wanted):
        Training(tiny_config(), bare, CPU)
    for system in ("gmade", "mahalanobis"):
        assert "val_auc/id_00" in Training(small_config(system), bare, CPU).run_epoch()


def test_a_loss_that_is_not_finite_ends_the_training(pack: Pack) -> None:
    training = Training(tiny_config(), pack, CPU)
    with torch.no_grad():
        training.network.total_conv.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"train_loss is nan in epoch 1.*train\.lr 0\.003"):
        training.run_epoch()
    assert training.epoch == 0


def test_a_learning_rate_that_explodes_is_told() -> None:
    training = Training(tiny_config(lr=1e30, batch_size=2), tone_pack(), CPU)
    with pytest.raises(NonFiniteLossError, match=r"train\.lr 1e\+30"):
        training.run_epoch()


def test_the_loss_is_the_weighted_sum_of_the_heads() -> None:
    class Given(Constant):
        def losses(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
            terms = {"total": 1.0, "magnitude": 8.0, "complex": 2.0}
            return {name: torch.tensor(terms[name]) for name in list(terms)[: len(features)]}

    network = Given(Logits(None, None, torch.zeros(1, 1)))
    loss = Loss(network, TrainConfig(loss_weight_magnitude=0.5, loss_weight_complex=0.25))
    assert float(loss(torch.zeros(2), torch.zeros(2))) == 1 + 0.5 * 8
    assert float(loss(torch.zeros(3), torch.zeros(3))) == 5 + 0.25 * 2


def test_cosine_falls_to_zero_over_the_epochs(pack: Pack) -> None:
    training = Training(tiny_config(lr_schedule="cosine", lr=0.01, epochs=3), pack, CPU)
    rates = []
    for _ in range(3):
        training.run_epoch()
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates == sorted(rates, reverse=True)
    last_step = (2 + 3 / 4) / 3  # 14 clips make 4 batches an epoch
    assert rates[-1] == pytest.approx(0.005 * (1 + np.cos(np.pi * last_step)))
    constant = Training(tiny_config(lr=0.01), pack, CPU)
    constant.run_epoch()
    assert constant.optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_training_differs_by_rounding_alone(
    pack: Pack, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler's last stage, which takes most of a minute."""
    made = []

    def compile_quickly(loss: Loss, device: torch.device) -> Any:
        made.append(compiled(loss, device, backend="aot_eager"))
        return made[-1]

    monkeypatch.setattr("mimimi_core.training.compiled", compile_quickly)
    plain = Training(tiny_config(AUGMENT_ALL, precision=precision), pack, CPU)
    assert not made
    found = Training(tiny_config(AUGMENT_ALL, precision=precision, compile=True), pack, CPU)
    assert len(made) == 1
    for _ in range(2):
        expected = plain.run_epoch()
        assert found.run_epoch() == pytest.approx(
            expected, rel=1e-4 if precision == "fp32" else 0.05
        )
    assert found.network.state_dict().keys() == plain.network.state_dict().keys()


def test_the_ninth_network_of_a_worker_is_still_compiled(pack: Pack) -> None:
    """By itself torch would run it as it is, with a warning."""
    from torch._dynamo.testing import CompileCounter  # loads the compiler

    counter = CompileCounter()
    for channels in range(1, 10):
        config = tiny_config()
        config = dataclasses.replace(
            config, network=dataclasses.replace(config.network, channels=channels)
        )
        own = Training(config, pack, CPU)
        features, target, _ = next(own.draw_epoch())
        compiled(own.loss, CPU, backend=counter)(features, target)
        assert counter.frame_count == channels


def test_the_objective_needs_one_id_with_both_labels_in_val(pack: Pack) -> None:
    assert objective_of(pack) == "val_auc"
    anomalies = pack.select("val", label=1)
    assert objective_of(resplit(pack, anomalies, "test")) == "id_swap_auc"
    assert objective_of(resplit(pack, anomalies[:-1], "test")) == "val_auc"
    # one id has normals alone and the other anomalies alone
    split = np.concatenate(
        [
            anomalies[pack.id_index[anomalies] == 0],
            [c for c in pack.select("val", label=0) if pack.id_index[c] == 1],
        ]
    )
    assert objective_of(resplit(pack, split, "test")) == "id_swap_auc"


def test_id_swap_auc_compares_own_normals_with_those_that_claim_the_id() -> None:
    pack = tone_pack(n_ids=3, n_other=4)
    no_anomalies = resplit(pack, np.flatnonzero(pack.labels == 1), "unused")
    training = Training(tiny_config(), no_anomalies, CPU)
    metrics = training.run_epoch()
    clips = np.sort(np.concatenate([pack.select("holdout"), pack.select("val", label=0)]))
    found = training.scores(clips)
    aucs = [roc_auc_score(found.id_index != i, found.nll[:, i]) for i in range(3)]
    assert metrics["id_swap_auc"] == pytest.approx(np.mean(aucs))
    assert "val_auc" not in metrics


def test_an_id_without_training_clips_is_no_part_of_an_objective() -> None:
    pack = tone_pack(n_ids=3, n_other=4)
    of_id = np.flatnonzero((pack.splits == "train") & (pack.id_index == 1))
    pack = resplit(pack, of_id, "holdout")
    training = Training(tiny_config(), pack, CPU)
    training.run_epoch()
    clips = np.concatenate([pack.select("holdout"), pack.select("val", label=0)])
    clips = clips[pack.id_index[clips] != 1]
    assert sorted(held_out_normals(pack)) == sorted(clips)
    found = training.scores(clips)
    aucs = [roc_auc_score(found.id_index != i, found.nll[:, i]) for i in (0, 2)]
    assert training.id_swap_auc() == pytest.approx(np.mean(aucs))
    anomalies_of_others = np.flatnonzero((pack.labels == 1) & (pack.id_index != 1))
    assert objective_of(resplit(pack, anomalies_of_others, "unused")) == "id_swap_auc"


def test_id_swap_auc_without_held_out_normals_says_what_to_add(pack: Pack) -> None:
    clips = held_out_normals(pack)
    of_id_02 = clips[pack.id_index[clips] == 1]
    no_anomalies = resplit(pack, np.flatnonzero(pack.labels == 1), "unused")
    for removed, n_ids in ((clips, 0), (of_id_02, 1)):
        message = f"fan: the objective id_swap_auc needs .* of two .* of {n_ids}: add normal record"
        with pytest.raises(ConfigError, match=message):
            Training(tiny_config(), resplit(no_anomalies, removed, "unused"), CPU)
    training = Training(tiny_config(), resplit(pack, of_id_02, "unused"), CPU)  # id_00 has val_auc
    with pytest.raises(ValueError, match="fan: no held-out normal clips.*add normal recordings"):
        training.id_swap_auc()


def test_a_split_without_clips_has_scores_and_aucs_of_nothing(pack: Pack) -> None:
    training = Training(tiny_config(), resplit(pack, pack.select("test"), "unused"), CPU)
    assert training.scores(pack.select("unused")).nll.shape == (0, 2)
    assert training.auc_report("test").auc is None
    assert training.auc_report("test", "val").n_clips == training.auc_report("val").n_clips


def test_held_out_normals_are_neither_trained_on_nor_tested(pack: Pack) -> None:
    clips = held_out_normals(pack)
    assert set(pack.splits[clips]) == {"holdout", "val"}
    assert not pack.labels[clips].any()
    assert len(clips) == 2 * (3 + 3)


def test_a_pack_on_disk_trains_like_one_in_memory(tmp_path: Path) -> None:
    root = write_dcase2020(tmp_path / "data", n_train=4, n_test=4)
    mapped = open_pack(pack_clips(find_clips(root)["fan"], tmp_path / "packs"))
    copied = dataclasses.replace(mapped, samples=mapped.samples.copy())
    trainings = [Training(tiny_config(AUGMENT_ALL), p, CPU) for p in (mapped, copied)]
    first, second = (training.run_epoch() for training in trainings)
    assert first == second
    assert _are_equal(*map(_weights, trainings))


def test_weight_decay_is_decoupled_from_the_gradient(pack: Pack) -> None:
    """AdamW: with the same gradients, one step differs by `lr * decay * weight` alone."""
    base = tiny_config(batch_size=100, lr=0.01)  # one step an epoch
    decayed = dataclasses.replace(
        base, train=TrainConfig(**dataclasses.asdict(base.train) | {"weight_decay": 0.5})
    )
    plain, with_decay = Training(base, pack, CPU), Training(decayed, pack, CPU)
    start = plain.network.encoder[0].weight_real.detach().clone()
    for training in (plain, with_decay):
        training.run_epoch()
    difference = (
        plain.network.encoder[0].weight_real - with_decay.network.encoder[0].weight_real
    ).detach()
    torch.testing.assert_close(difference, 0.01 * 0.5 * start, rtol=1e-3, atol=1e-6)


def test_the_steps_of_an_epoch_read_nothing_back_from_the_device() -> None:
    training = Training(tiny_config(AUGMENT_ALL), tone_pack(), CPU)
    with Reads() as reads:
        loss = training.train_steps()
    assert reads.n == 0
    with reads:
        float(loss)
    assert reads.n == 1
