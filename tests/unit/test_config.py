import dataclasses
from typing import Any

import pytest
import torch

from mimimi_core.config import (
    AugmentConfig,
    ConfigError,
    ConflictError,
    FrontendConfig,
    NetworkConfig,
    Padding,
    TrainConfig,
    TrialConfig,
    known_params,
)
from mimimi_core.network import build_network


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
        ("frontend.hop", 0, "must be > 0"),
        ("frontend.hop", 1025, "must be <= frontend.n_fft (1024)"),
        ("frontend.n_frames", 0, "must be >= 1"),
        ("frontend.n_mels", 0, "must be >= 1"),
        ("frontend.kind", "cqt", "must be one of"),
        ("network.kind", "vgg", "must be one of"),
        ("network.norm", "joint", "must be one of"),
        ("network.activation", "relu", "must be one of"),
        ("network.head", "cosface", "must be one of"),
        ("network.arcface_scale", 0.0, "must be > 0"),
        ("network.arcface_margin", -0.1, "must be in 0..pi/2"),
        ("network.arcface_margin", 1.6, "must be in 0..pi/2"),
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
        ("augment.mixing_alpha", 0.0, "must be >= 0.1"),
        ("augment.mixing_alpha", 0.09, "must be >= 0.1"),
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
        ("train.patience", -1, "must be >= 0"),
        ("train.seed", -1, "must be in 0..2**48-1"),
        ("train.seed", 2**48, "must be in 0..2**48-1"),
    ],
)
def test_a_bad_value_is_refused_by_name_rule_and_value(name: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrialConfig.from_params({name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} {rule}")
    assert message.endswith(f"got {value!r}")


def test_an_early_kernel_of_a_single_point_is_refused() -> None:
    """It would take the process with it, now and then."""
    params = {"network.kernel_height_early": 1, "network.kernel_width_early": 1}
    with pytest.raises(ConflictError, match=r"^network\.kernel_height_early must be > 1 where net"):
        TrialConfig.from_params(params)
    for name in params:
        TrialConfig.from_params({name: 1})


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrialConfig().train.lr = 1.0  # type: ignore[misc]


def test_settings_that_do_not_fit_together_are_refused_before_anything_is_built() -> None:
    params = {"network.depth": 7, "frontend.n_frames": 64}
    with pytest.raises(ConflictError, match="513 x 64 .* too small for network.depth 7"):
        TrialConfig.from_params(params)
    TrialConfig.from_params(params | {"frontend.n_frames": 128})


@pytest.mark.parametrize("padding", ["half", "valid"])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("depth", [3, 5])
def test_what_fits_is_what_trains(padding: Padding, attention: bool, depth: int) -> None:
    config = NetworkConfig(padding=padding, attention=attention, depth=depth, channels=2)
    network = build_network(config, 2)
    outcomes = set()
    for n_bins, n_frames in [(2, 2), (9, 9), (33, 16), (65, 24), (129, 33), (257, 64), (513, 64)]:
        try:
            network(torch.zeros(1, 2, n_bins, n_frames))
        except (RuntimeError, ValueError):
            works = False
        else:
            works = True
        assert config.fits(2, n_bins, n_frames) is works, (n_bins, n_frames)
        outcomes.add(works)
    assert outcomes == {True, False}
