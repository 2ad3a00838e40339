"""Patience, and the figures that need no labelled anomaly."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mimimi_core.config import AugmentConfig, ConfigError
from mimimi_core.pack import Pack
from mimimi_core.training import NonFiniteLossError, Objective, Training, held_out_normals
from tests.model_fixtures import AUGMENT_ALL, CPU, resplit, tiny_config, tone_pack


@pytest.fixture(scope="module")
def pack() -> Pack:
    return tone_pack()


def _script(
    training: Training, monkeypatch: pytest.MonkeyPatch, values: list[float]
) -> list[dict[str, torch.Tensor]]:
    """Let the epochs find these `val_auc`; returns the weights after each of them."""
    weights: list[dict[str, torch.Tensor]] = []

    def val_metrics() -> dict[str, float]:
        weights.append({k: v.clone() for k, v in training.network.state_dict().items()})
        return {"val_auc": values[training.epoch - 1]}

    monkeypatch.setattr(training, "_val_metrics", val_metrics)
    return weights


def _run(training: Training) -> list[dict[str, float]]:
    metrics = []
    while not training.is_done:
        metrics.append(training.run_epoch())
    return metrics


def test_without_patience_the_last_epoch_is_the_last(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tiny_config(epochs=4), pack, CPU)
    weights = _script(training, monkeypatch, [0.9, 0.1, 0.1, 0.2])
    assert not training.is_done
    metrics = _run(training)
    assert [m["val_auc"] for m in metrics] == [0.9, 0.1, 0.1, 0.2]
    assert training.epoch == 4
    for name, value in training.network.state_dict().items():
        assert torch.equal(value, weights[3][name])


@pytest.mark.parametrize(
    ("patience", "values", "n_epochs", "best"),
    [
        (1, [0.5, 0.5, 0.9], 2, 1),  # as good is not better
        (2, [0.5, 0.7, 0.6, 0.7, 0.9], 4, 2),
        (2, [0.5, 0.4, 0.6, 0.5, 0.7, 0.1], 6, 5),  # the epochs end before the patience does
        (9, [0.9, 0.4, 0.6, 0.5, 0.7, 0.8], 6, 1),
    ],
)
def test_patience_ends_a_training_at_its_best_epoch(
    pack: Pack,
    monkeypatch: pytest.MonkeyPatch,
    patience: int,
    values: list[float],
    n_epochs: int,
    best: int,
) -> None:
    training = Training(tiny_config(epochs=6, patience=patience), pack, CPU)
    weights = _script(training, monkeypatch, values)
    metrics = _run(training)
    assert training.epoch == len(metrics) == n_epochs
    assert metrics[-1]["val_auc"] == values[best - 1]
    assert metrics[-1]["train_loss"] == metrics[best - 1]["train_loss"]
    for name, value in training.network.state_dict().items():
        assert torch.equal(value, weights[best - 1][name])


def test_patience_watches_the_objective_it_was_given(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(epochs=6, patience=1)
    training = Training(config, pack, CPU, objective="normal_log_likelihood")
    found = iter([-3.0, -2.0, -2.5])
    monkeypatch.setattr(
        training, "_label_free", lambda name: next(found) if "normal" in name else 0.5
    )
    metrics = _run(training)
    assert [m["normal_log_likelihood"] for m in metrics] == [-3.0, -2.0, -2.0]
    assert metrics[2]["val_auc"] == metrics[1]["val_auc"]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_training_with_patience_is_bit_equal(
    tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    config = tiny_config(AUGMENT_ALL, epochs=6, patience=2)
    values = [0.6, 0.7, 0.1, 0.2]

    def start() -> Training:
        training = Training(config, pack, CPU)
        _script(training, monkeypatch, values)
        return training

    whole = start()
    expected = _run(whole)
    assert len(expected) == 4
    first = start()
    found = [first.run_epoch() for _ in range(stop_after)]
    first.save(tmp_path / "state.pt", found[-1])
    rest = start()
    assert rest.restore(tmp_path / "state.pt") == found[-1]
    found += _run(rest)
    assert found == expected
    rest.save(tmp_path / "over.pt", found[-1])
    over = start()
    over.restore(tmp_path / "over.pt")
    assert over.is_done
    for name, value in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], value)
        assert torch.equal(over.network.state_dict()[name], value)


def test_a_checkpoint_remembers_its_objective(tmp_path: Path, pack: Pack) -> None:
    training = Training(tiny_config(), pack, CPU, objective="normal_log_likelihood")
    training.save(tmp_path / "state.pt", training.run_epoch())
    continued = Training.from_checkpoint(tmp_path / "state.pt", pack, CPU)
    assert continued.objective == "normal_log_likelihood"
    assert continued.run_epoch() == training.run_epoch()


def test_the_last_epoch_alone_tells_what_needs_no_label(pack: Pack) -> None:
    training = Training(tiny_config(epochs=2), pack, CPU)
    first, last = training.run_epoch(), training.run_epoch()
    assert not {"id_swap_auc", "normal_log_likelihood"} & set(first)
    assert last["id_swap_auc"] == training.id_swap_auc()
    assert last["normal_log_likelihood"] == training.normal_log_likelihood()


def test_held_out_normals_of_a_single_id_tell_nothing(pack: Pack) -> None:
    clips = held_out_normals(pack)
    of_one = resplit(pack, clips[pack.id_index[clips] == 1], "unused")
    metrics = Training(tiny_config(epochs=1), of_one, CPU).run_epoch()
    assert not {"id_swap_auc", "normal_log_likelihood"} & set(metrics)


@pytest.mark.parametrize("objective", ["id_swap_auc", "normal_log_likelihood"])
def test_an_objective_without_labels_is_in_every_epoch(pack: Pack, objective: Objective) -> None:
    training = Training(tiny_config(), pack, CPU, objective=objective)
    assert training.objective == objective
    metrics = training.run_epoch()
    assert {"val_auc", objective} < set(metrics)
    assert len({"id_swap_auc", "normal_log_likelihood"} & set(metrics)) == 1


def test_an_auc_cannot_be_the_objective_of_clips_without_anomalies(pack: Pack) -> None:
    no_anomalies = resplit(pack, pack.select("val", label=1), "unused")
    with pytest.raises(ConfigError, match="fan: the objective val_auc needs .* id_swap_auc, norm"):
        Training(tiny_config(), no_anomalies, CPU, objective="val_auc")
    assert Training(tiny_config(), no_anomalies, CPU).objective == "id_swap_auc"


def test_likelihood_without_held_out_normals_says_what_to_add(pack: Pack) -> None:
    bare = resplit(pack, np.flatnonzero(pack.splits != "train"), "unused")
    message = "fan: the objective normal_log_likelihood needs .* of a machine id, .* of 0: add "
    with pytest.raises(ConfigError, match=message):
        Training(tiny_config(), bare, CPU, objective="normal_log_likelihood")


def _silent(pack: Pack) -> Pack:
    """All crops of a clip are one crop, whatever is drawn, and noise on silence is silence."""
    return dataclasses.replace(pack, samples=np.zeros_like(pack.samples))


def test_likelihood_is_that_of_the_own_id(pack: Pack) -> None:
    training = Training(tiny_config(), _silent(pack), CPU)
    training.run_epoch()
    clips = held_out_normals(pack)
    with torch.no_grad():
        logits = training.network.eval()(torch.zeros(1, 2, 33, 8)).total
    expected = F.log_softmax(logits, dim=1)[0, torch.from_numpy(pack.id_index[clips])].mean()
    assert training.normal_log_likelihood() == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("augment", [AugmentConfig(), AUGMENT_ALL], ids=["plain", "augmented"])
def test_likelihood_draws_the_same_every_time(pack: Pack, augment: AugmentConfig) -> None:
    training = Training(tiny_config(augment), pack, CPU)
    torch.manual_seed(1)
    first = training.normal_log_likelihood()
    torch.manual_seed(2)
    assert training.normal_log_likelihood() == first
    assert first < 0


def test_likelihood_is_of_the_same_crops_whatever_augments_them(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimimi_core.training.WINDOWS_PER_BATCH", 16)  # three parts

    def drawn(augment: AugmentConfig) -> list[torch.Tensor]:
        training = Training(tiny_config(augment), pack, CPU)
        found, random = [], training.crops.random

        def keep(*args: Any) -> torch.Tensor:
            found.append(random(*args))
            return found[-1]

        monkeypatch.setattr(training.crops, "random", keep)
        training.normal_log_likelihood()
        return found

    plain = drawn(AugmentConfig())
    assert len(plain) == 3
    for augment in (AUGMENT_ALL, AugmentConfig(mask=True), AugmentConfig(shift=True)):
        for mine, theirs in zip(drawn(augment), plain, strict=True):
            assert torch.equal(mine, theirs)


def test_likelihood_is_harder_under_the_trainings_own_augmentations(pack: Pack) -> None:
    training = Training(tiny_config(lr=0.01, epochs=8), pack, CPU)
    _run(training)
    hard = AugmentConfig(mask=True, mask_p=1.0, mask_bands=4, mask_width=16)
    augmented = Training(tiny_config(hard, lr=0.01, epochs=8), pack, CPU)
    augmented.network.load_state_dict(training.network.state_dict())
    assert augmented.normal_log_likelihood() < training.normal_log_likelihood() - 0.01


def test_likelihood_is_of_unmixed_crops(pack: Pack) -> None:
    plain, mixed = (
        Training(tiny_config(AugmentConfig(mixing=mixing, mixing_p=1.0)), pack, CPU)
        for mixing in (False, True)
    )
    assert mixed.normal_log_likelihood() == plain.normal_log_likelihood()


def test_a_likelihood_that_is_not_finite_ends_the_training(pack: Pack) -> None:
    training = Training(tiny_config(), pack, CPU)
    with torch.no_grad():
        training.network.total_conv.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="scores are not finite"):
        training.normal_log_likelihood()
