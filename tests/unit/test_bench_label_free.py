"""What the benchmark of label-free figures trains, and how it correlates."""

import numpy as np
import pytest

from mimimi_core.config import TrialConfig
from mimimi_core.training import NonFiniteLossError, Training
from tests.bench.label_free import (
    chosen_test_auc,
    draw_params,
    learned,
    mean_rho,
    print_means,
    train,
)
from tests.model_fixtures import CPU, tiny_config, tone_pack


def test_every_drawn_configuration_is_valid_and_they_differ() -> None:
    rng = np.random.default_rng(0)
    drawn = [TrialConfig.from_params(draw_params(rng, epochs=3)) for _ in range(50)]
    assert {config.train.epochs for config in drawn} == {3}
    assert {config.network.channels for config in drawn} == {4, 5, 6, 7, 8}
    rates = [config.train.lr for config in drawn]
    assert 1e-4 <= min(rates) < 3e-4 < 1e-2 < max(rates) <= 3e-2


def test_an_unwatched_training_ends_as_a_watched_one() -> None:
    params, pack = tiny_config(epochs=2).to_params(), tone_pack()
    training = Training(TrialConfig.from_params(params), pack, CPU)
    training.run_epoch()
    expected = training.run_epoch() | {"test_auc": training.auc_report("test").auc}
    found = train(params, pack)
    assert found == expected
    assert {"id_swap_auc", "normal_log_likelihood", "val_auc", "test_auc"} <= set(found)


def test_a_training_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Training) -> dict[str, float]:
        raise NonFiniteLossError("train_loss is nan")

    monkeypatch.setattr(Training, "run_epoch", fail)
    assert train(tiny_config().to_params(), tone_pack()) is None


def test_the_mean_correlation_is_over_machine_types() -> None:
    rising = np.array([[1, 10], [2, 20], [3, 300], [4, 400], [5, 401]])
    falling = rising * [1, -1]
    assert mean_rho([rising, rising])[1:] == (10, pytest.approx(1), pytest.approx((1, 1)))
    opposed = mean_rho([rising, falling])
    assert opposed.rho == pytest.approx(0)
    swapped = rising[:, [0, 0]].copy()
    swapped[:2, 1] = swapped[1::-1, 1]  # 1 - 6 * 2 / (5 * 24)
    found = mean_rho([swapped])
    assert found.rho == pytest.approx(0.9)
    assert found.interval[0] < 0.9 < found.interval[1]
    assert mean_rho([rising, rising * [0, 1]]).rho is mean_rho([]).rho is None


def row(id_swap_auc: float, normal_log_likelihood: float, auc: float) -> dict[str, float]:
    figures = {"id_swap_auc": id_swap_auc, "normal_log_likelihood": normal_log_likelihood}
    return figures | {"val_auc": auc, "test_auc": auc}


def test_a_tie_is_chosen_at_random() -> None:
    rows = [row(1.0, -1, 0.5), row(1.0, -2, 0.7), row(0.9, -0.5, 0.8)]
    assert chosen_test_auc(rows, "id_swap_auc") == pytest.approx(0.6)
    assert chosen_test_auc(rows, "normal_log_likelihood") == 0.8


def test_the_means_say_how_figures_rank_and_what_they_would_choose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row(-n, n, n / 10) for n in range(5)]
    said = print_means({"fan": rows, "pump": rows}, "mean")
    assert said["configurations"] == 10
    assert said["id_swap_auc_chosen_test_auc"] == 0.0
    assert said["normal_log_likelihood_chosen_test_auc"] == pytest.approx(0.4)
    assert said["id_swap_auc_test_auc_rho"] == pytest.approx(-1)
    assert said["val_auc_test_auc_rho"] == pytest.approx(1)
    assert "val_auc_val_auc_rho" not in said
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_those_that_have_learned_are_looked_at_alone() -> None:
    rows = [row(1.0, -n, 0.5 + n / 100) for n in range(5)] + [row(0.6, -9, 0.4)]
    found = learned({"fan": rows, "pump": rows[1:]})
    assert found == {"fan": rows[:5]}
    said = print_means(found, "mean")
    assert said["id_swap_auc_test_auc_rho"] is None  # all alike
    assert said["normal_log_likelihood_test_auc_rho"] == pytest.approx(-1)
    nobody = print_means(learned({"pump": rows[1:]}), "mean")
    assert nobody["configurations"] == 0
    assert nobody["val_auc_chosen_test_auc"] is None
