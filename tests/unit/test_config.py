import dataclasses
from typing import Any

import pytest

from mimimi_core.config import (
    AugmentConfig,
    ConfigError,
    FrontendConfig,
    NetworkConfig,
    TrainConfig,
    TrialConfig,
    known_params,
)


def test_defaults_are_the_papers() -> None:
    assert FrontendConfig().n_bins == 513
    assert FrontendConfig().crop_samples == 33_280
    assert NetworkConfig().layers == (
        (45, (7, 5), (2, 2)),
        (90, (7, 5), (2, 2)),
        (90, (5, 3), (2, 2)),
        (90, (5, 3), (2, 2)),
        (45, (5, 2), (2, 1)),
    )


def test_crop_samples_are_what_the_frames_span() -> None:
    config = FrontendConfig(n_fft=256, hop=100, n_frames=11)
    n_samples = config.crop_samples
    assert (n_samples - 256) % 100 == 0
    assert len(range(0, n_samples - 256 + 1, 100)) == 11


def test_depth_and_kernels_shape_the_layers() -> None:
    config = NetworkConfig(
        channels=3,
        depth=4,
        kernel_height_early=9,
        kernel_width_early=3,
        kernel_height_late=6,
        kernel_width_late=4,
        kernel_width_last=1,
    )
    assert config.layers == (
        (3, (9, 3), (2, 2)),
        (6, (9, 3), (2, 2)),
        (6, (6, 4), (2, 2)),
        (3, (6, 1), (2, 1)),
    )


def test_params_and_settings_are_one_to_one() -> None:
    config = TrialConfig.from_params(
        {
            "network.channels": 7,
            "network.attention": False,
            "train.lr": 3e-3,
            "augment.mixing": True,
            "frontend.normalization": "rms",
        }
    )
    assert config == TrialConfig(
        network=NetworkConfig(channels=7, attention=False),
        train=TrainConfig(lr=3e-3),
        augment=AugmentConfig(mixing=True),
        frontend=FrontendConfig(normalization="rms"),
    )
    params = config.to_params()
    assert list(params) == list(known_params())
    assert TrialConfig.from_params(params) == config
    assert TrialConfig.from_params({}) == TrialConfig()


def test_a_whole_number_will_do_for_a_fraction() -> None:
    value = TrialConfig.from_params({"train.weight_decay": 1}).train.weight_decay
    assert value == 1.0
    assert isinstance(value, float)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'network\.width'.*network\.channels"):
        TrialConfig.from_params({"network.width": 3})
    with pytest.raises(ConfigError, match="unknown parameter 'channels'"):
        TrialConfig.from_params({"channels": 3})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("network.channels", 2.5, "must be of type int"),
        ("network.channels", True, "must be of type int"),
        ("network.channels", "45", "must be of type int"),
        ("network.attention", 1, "must be of type bool"),
        ("train.lr", "fast", "must be of type float"),
        ("train.lr", True, "must be of type float"),
        ("network.padding", "same", "must be one of"),
        ("train.lr_schedule", "step", "must be one of"),
        ("train.precision", "fp16", "must be one of"),
        ("frontend.normalization", None, "must be one of"),
        ("frontend.sample_rate", 0, "must be > 0"),
        ("frontend.n_fft", 8, "must be >= 16"),
        ("frontend.hop", 0, "must be in 1..n_fft"),
        ("frontend.hop", 1025, "must be in 1..n_fft"),
        ("frontend.n_frames", 0, "must be >= 1"),
        ("network.channels", 0, "must be >= 1"),
        ("network.depth", 2, "must be >= 3"),
        ("network.kernel_height_early", 0, "must be >= 1"),
        ("network.kernel_width_early", 0, "must be >= 1"),
        ("network.kernel_height_late", 0, "must be >= 1"),
        ("network.kernel_width_late", -1, "must be >= 1"),
        ("network.kernel_width_last", 0, "must be >= 1"),
        ("network.attention_expansion", 0, "must be >= 1"),
        ("augment.mixing_p", 1.1, "must be in 0..1"),
        ("augment.mask_p", -0.1, "must be in 0..1"),
        ("augment.noise_p", float("nan"), "must be in 0..1"),
        ("augment.shift_p", 2.0, "must be in 0..1"),
        ("augment.mixing_alpha", 0.0, "must be > 0"),
        ("augment.noise_level", 0.0, "must be > 0"),
        ("augment.mask_bands", 0, "must be >= 1"),
        ("augment.mask_width", 0, "must be >= 1"),
        ("augment.shift_bins", 0, "must be >= 1"),
        ("train.epochs", 0, "must be >= 1"),
        ("train.batch_size", 1, "must be >= 2"),
        ("train.lr", 0.0, "must be > 0"),
        ("train.lr", float("nan"), "must be > 0"),
        ("train.weight_decay", -1e-9, "must be >= 0"),
        ("train.loss_weight_magnitude", -1.0, "must be >= 0"),
        ("train.loss_weight_complex", -1.0, "must be >= 0"),
        ("train.seed", -1, "must be >= 0"),
    ],
)
def test_a_bad_value_is_refused_by_name_rule_and_value(name: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrialConfig.from_params({name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} {rule}")
    assert message.endswith(f"got {value!r}")


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrialConfig().train.lr = 1.0  # type: ignore[misc]
