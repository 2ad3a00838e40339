"""The systems of the paper's Table II: shapes, parameters and operations, computed by hand."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mimimi_core import table2
from mimimi_core.config import (
    INPUTS,
    ConfigError,
    ConflictError,
    FrontendConfig,
    NetworkConfig,
    NetworkKind,
    TrialConfig,
)
from mimimi_core.mobilenetv2 import InvertedResidual
from mimimi_core.network import build_network, network_cost
from search.config import load_space
from search.space import Space

MAGNITUDE = {"frontend.kind": "magnitude"}
LOGMEL = {"frontend.kind": "logmel"}
MOBILENET = {"frontend.kind": "logmel", "network.kind": "mobilenetv2"}


def _cost(params: dict[str, Any], n_ids: int = 4) -> tuple[int, int]:
    config = TrialConfig.from_params(params)
    return tuple(network_cost(config.network, config.frontend, n_ids))  # type: ignore[return-value]


def _sizes(network: nn.Module, crop: Tensor) -> list[tuple[int, ...]]:
    """(channels, rows, frames) of each map that a convolution made."""
    sizes: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # a head returns its map averaged, so its own size is left out
            module.register_forward_hook(
                lambda *call: sizes.append(tuple(call[2].shape[1:])) if call[2].ndim == 4 else None
            )
    with torch.no_grad():
        network(crop)
    return sizes


def test_the_real_encoder_has_half_the_parameters_of_the_complex_one() -> None:
    convolutions = 45 * 35 + 45 * 90 * 35 + 90 * 90 * 15 + 90 * 90 * 15 + 90 * 45 * 10
    norms_and_slopes = 3 * (45 + 90 + 90 + 90 + 45)
    head = 45 * 4 * 5 + 4
    assert convolutions + norms_and_slopes + head == 428_809
    assert _cost(MAGNITUDE)[0] == _cost(LOGMEL)[0] == 428_809


def test_maps_and_operations_of_the_real_encoder_on_magnitudes() -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(), 4, FrontendConfig(kind="magnitude"))
        sizes = _sizes(network, torch.empty(1, 1, 513, 64))
    assert sizes == [(45, 257, 32), (90, 129, 16), (90, 65, 8), (90, 33, 4), (45, 17, 3)]
    macs = 257 * 32 * 45 * 35 + 129 * 16 * 45 * 90 * 35
    macs += (65 * 8 + 33 * 4) * 90 * 90 * 15 + 17 * 3 * 90 * 45 * 10 + 9 * 3 * 45 * 4 * 5
    assert _cost(MAGNITUDE)[1] == macs


def test_maps_of_the_real_encoder_on_mel_bands() -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(), 4, FrontendConfig(kind="magnitude"))
        sizes = _sizes(network, torch.empty(1, 1, 128, 64))
    assert sizes == [(45, 64, 32), (90, 32, 16), (90, 16, 8), (90, 8, 4), (45, 4, 3)]


# Every block of MobileNetV2's Table 2: input, output, expansion, stride.
BLOCKS = [
    *[(32, 16, 1, 1)],
    *[(16, 24, 6, 2), (24, 24, 6, 1)],
    *[(24, 32, 6, 2), (32, 32, 6, 1), (32, 32, 6, 1)],
    *[(32, 64, 6, 2), (64, 64, 6, 1), (64, 64, 6, 1), (64, 64, 6, 1)],
    *[(64, 96, 6, 1), (96, 96, 6, 1), (96, 96, 6, 1)],
    *[(96, 160, 6, 2), (160, 160, 6, 1), (160, 160, 6, 1)],
    *[(160, 320, 6, 1)],
]


def _mobilenet(n_in: int, n_out: int, rows: int, frames: int) -> tuple[int, int]:
    """Parameters and multiplications by hand, the logits being a 1 x 1 convolution of the map."""

    def halve(n: int) -> int:
        return (n + 1) // 2

    rows, frames = halve(rows), halve(frames)
    parameters = n_in * 32 * 9 + 2 * 32
    macs = n_in * 32 * 9 * rows * frames
    for a, b, expansion, stride in BLOCKS:
        hidden = expansion * a
        if expansion > 1:
            parameters += a * hidden + 2 * hidden
            macs += a * hidden * rows * frames
        if stride == 2:
            rows, frames = halve(rows), halve(frames)
        parameters += 9 * hidden + 2 * hidden + hidden * b + 2 * b
        macs += (9 * hidden + hidden * b) * rows * frames
    parameters += 320 * 1280 + 2 * 1280 + 1280 * n_out + n_out
    return parameters, macs + (320 * 1280 + 1280 * n_out) * rows * frames


def test_mobilenetv2_is_the_published_table_with_one_input_channel() -> None:
    assert _mobilenet(3, 1000, 224, 224)[0] == 3_504_872  # that of torchvision's
    parameters, macs = _mobilenet(1, 4, 128, 64)
    assert parameters == 2_228_420
    assert _cost(MOBILENET) == (parameters, macs)
    assert _cost(MOBILENET | {"frontend.kind": "magnitude"}) == _mobilenet(1, 4, 513, 64)


def test_maps_of_mobilenetv2_on_mel_bands() -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(kind="mobilenetv2"), 4)
        sizes = _sizes(network, torch.empty(1, 1, 128, 64))
    assert sizes[0] == (32, 64, 32)
    assert sizes[-1] == (1280, 4, 2)
    residual = [m.is_residual for m in network.modules() if isinstance(m, InvertedResidual)]
    assert residual == [a == b and stride == 1 for a, b, _, stride in BLOCKS]
    assert sum(residual) == 10


def test_a_residual_block_adds_what_it_was_given() -> None:
    torch.manual_seed(0)
    block = InvertedResidual(4, 4, expansion=6, stride=1).eval()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x) - block.layers(x), x)
    changed = InvertedResidual(4, 4, expansion=6, stride=2).eval()
    assert changed(x).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("attention", [True, False])
def test_the_complex_rows_cost_what_they_did(attention: bool) -> None:
    parameters = 859_306 - (0 if attention else 752)
    assert _cost({"network.attention": attention})[0] == parameters


def _by_hand(kind: NetworkKind) -> tuple[int, int]:
    """Parameters and operations on 64 frames of 128 bands."""
    macs = 64 * 32 * 45 * 35 + 32 * 16 * 45 * 90 * 35
    macs += (16 * 8 + 8 * 4) * 90 * 90 * 15 + 4 * 3 * 90 * 45 * 10 + 2 * 3 * 45 * 4 * 5
    dense = {
        "autoencoder": [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640],
        "gmade": [640, 512, 512, 2 * 640],
    }.get(kind, [])
    weights = sum(a * b for a, b in pairwise(dense))
    norms = 2 * (8 * 128 + 8) if kind == "autoencoder" else 0
    return {
        "deep_encoder": (428_809, macs),
        "mobilenetv2": _mobilenet(1, 4, 128, 64),
        "autoencoder": (weights + sum(dense[1:]) + norms, (64 - 4) * weights),
        "gmade": (weights + sum(dense[1:]), (64 - 4) * weights),
        "mahalanobis": (0, 4 * 128 * 128),  # each id's deviation by the precision
        "nearest_neighbour": (0, 4 * 1024 * 128),  # products with all that is held
    }[kind]


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_costs_on_mel_bands_what_was_computed_by_hand(kind: NetworkKind) -> None:
    assert _cost(LOGMEL | {"network.kind": kind}) == _by_hand(kind)


def test_operations_of_the_complex_encoder() -> None:
    macs = 257 * 32 * (2 * 90) * 35 + 129 * 16 * (90 * 180) * 35
    macs += (65 * 8 + 33 * 4) * (180 * 180) * 15 + 17 * 3 * (180 * 90) * 10
    macs += 9 * 3 * (45 * 4 + 90 * 4) * 5  # the branches
    attention = 5 * 3 * (8 * 8) * 3 + 8 * 32 + 32 * 8
    macs += 9 * 3 * 8 * 4  # the total
    assert _cost({})[1] == macs + attention
    assert _cost({"network.attention": False})[1] == macs


def test_cosine_heads_take_the_place_of_the_last_convolution() -> None:
    arcface = {"network.head": "arcface"}
    assert _cost(arcface)[0] == 859_306 - (8 * 4 + 4) + 8 * 4
    assert _cost(MAGNITUDE | arcface)[0] == 428_809 - (45 * 4 * 5 + 4) + 45 * 4
    assert _cost(MOBILENET | arcface)[0] == 2_228_420 - 4
    noisy = {"network.head": "noisy_arcmix", "augment.mixing": True}
    assert _cost(noisy) == _cost(arcface)


def test_whitening_and_activations_change_the_count_by_their_own() -> None:
    channels = 45 + 90 + 90 + 90 + 45
    assert _cost({"network.norm": "whitening"})[0] == 859_306 + channels
    assert _cost({"network.activation": "modrelu"})[0] == 859_306 - channels
    assert _cost({"network.activation": "crelu"})[0] == 859_306 - 2 * channels
    assert _cost({"network.activation": "zrelu"})[0] == 859_306 - 2 * channels


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"network.kind": "mobilenetv2"}, "frontend.kind must be 'magnitude' or 'logmel' .*'com"),
        (MAGNITUDE | {"network.norm": "whitening"}, "network.norm must be 'split' unless a deep_"),
        (MOBILENET | {"network.activation": "zrelu"}, "network.activation must be 'prelu' unl"),
        (LOGMEL | {"frontend.n_mels": 129}, "must be <= a quarter of the 513 bins.*got 129"),
        (
            MOBILENET | {"frontend.n_mels": 32, "frontend.n_frames": 32},
            "a crop of 32 x 32 .* too small for network.kind 'mobilenetv2': raise frontend.n_fr",
        ),
        (
            {"network.head": "noisy_arcmix"},
            "augment.mixing must be true for .*'noisy_arcmix'",
        ),
        (LOGMEL | {"frontend.n_frames": 16}, "a crop of 128 x 16 .* too small for network.depth 5"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConflictError, match=message):
        TrialConfig.from_params(params)


@pytest.mark.parametrize(
    "kind", ["deep_encoder", "mobilenetv2", "mahalanobis", "nearest_neighbour"]
)
def test_one_machine_id_alone_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="at least 2 machine ids"):
        build_network(NetworkConfig(kind=kind), 1, FrontendConfig(kind="logmel"))


@pytest.mark.parametrize("kind", ["mobilenetv2", "deep_encoder"])
@pytest.mark.parametrize("crop", [(33, 1), (32, 32), (5, 5), (33, 17), (9, 17)])
def test_what_fits_is_what_trains(kind: Any, crop: tuple[int, int]) -> None:
    config = NetworkConfig(kind=kind, channels=2, depth=4)
    network = build_network(config, 2, FrontendConfig(kind="magnitude"))
    try:
        network(torch.zeros(1, 1, *crop))
    except (RuntimeError, ValueError):
        assert not config.fits(1, *crop)
    else:
        assert config.fits(1, *crop)


PUBLISHED_MEANS = [87.84, 89.41, 91.03, 93.86, 93.90, 95.39]


def test_the_published_figures_have_the_published_means() -> None:
    for row, mean in zip(table2.ROWS, PUBLISHED_MEANS, strict=True):
        assert row.auc is not None
        assert sum(row.auc) / 4 == pytest.approx(mean, abs=0.0051)


@pytest.mark.parametrize("row", table2.ROWS + table2.YARDSTICKS, ids=lambda row: row.name)
def test_a_row_describes_itself_alone(row: table2.Row) -> None:
    everything = table2.ROWS + table2.YARDSTICKS
    trained = TrialConfig.from_params({**row.params, "train.lr": 0.01, "train.seed": 5})
    assert [other for other in everything if other.describes(trained)] == [row]


def test_half_of_the_crops_mixed_is_not_giris_task() -> None:
    config = TrialConfig.from_params(MAGNITUDE | {"augment.mixing": True, "augment.mixing_p": 0.5})
    assert not any(row.describes(config) for row in table2.ROWS)


def test_the_table_lists_parameters_operations_and_published_figures() -> None:
    lines = table2.describe()
    assert len(lines) == 2 + 6 + 4
    assert {line.count("|") for line in lines} == {9}
    attention = next(line for line in lines if "with attention" in line)
    assert attention.split(" | ")[1:] == (
        ["859,306", "1,547.3", "89.55", "96.40", "98.75", "96.87", "95.39 |"]
    )


def test_the_readme_says_what_the_command_says() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for line in table2.describe()[2:]:
        name, n_parameters, macs, *aucs = (cell.strip() for cell in line.strip("| \n").split("|"))
        mean = aucs[-1] if len(aucs) == 5 else ""
        assert f"| {name} | {n_parameters} | {macs} | {mean} |".replace("|  |", "| |") in readme


def test_the_space_of_the_paper_holds_every_row_once() -> None:
    space = load_space(Path(__file__).parents[2] / "spaces" / "paper.yaml")
    grid = [TrialConfig.from_params(params) for params in Space(space.parameters).grid()]
    assert len(grid) == len(set(grid)) == space.study.trials
    for row in table2.ROWS:
        assert [config for config in grid if row.describes(config)] == [row.config]
    for row in table2.SYSTEMS:
        assert sum(row.describes(config) for config in grid) == 1
    assert space.confirmation.top >= len(grid)  # so that every row has several seeds
