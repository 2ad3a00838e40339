"""t-SNE of embeddings: what the last layer gets, and a map that keeps neighbours together."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mimimi_core.config import CLASSIFIERS, NetworkConfig
from mimimi_core.crops import window_offsets
from mimimi_core.detector import Detector, DetectorError, Member
from mimimi_core.network import build_network
from mimimi_core.pack import Pack, open_pack
from mimimi_core.tsne import EmbeddingError, embed, main, map_to_plane, settings, tsne_figure
from tests.audio_fixtures import write_dcase2020
from tests.model_fixtures import FRONTEND, make_detector, make_pack, tone, tone_pack
from tests.system_fixtures import SYSTEMS, small_config

IDS = ("id_00", "id_02")


def detector_of(system: str, machine_ids: tuple[str, ...] = IDS) -> Detector:
    config = small_config(system)
    torch.manual_seed(0)
    network = build_network(config.network, len(machine_ids), config.frontend)
    return Detector(
        members=[Member(config=config, network=network)],
        machine_type="fan",
        machine_ids=machine_ids,
        thresholds=dict.fromkeys(machine_ids),
    )


def pack_of(n_samples: int, n_clips: int = 3) -> Pack:
    rng = np.random.default_rng(0)
    clips = [tone(1000 + 300 * n, rng, n_samples) for n in range(n_clips)]
    return make_pack(clips, [n % 2 for n in range(n_clips)], [0] * n_clips, ["test"] * n_clips)


def test_the_last_layer_makes_the_scores_of_the_embeddings() -> None:
    pack = pack_of(FRONTEND.crop_samples)  # a window each, so that no mean comes between
    clips = np.arange(3)
    detector = detector_of("complex with attention")
    weight = detector.members[0].network.total_conv.weight[:, :, 0, 0].double().detach().numpy()
    bias = detector.members[0].network.total_conv.bias.double().detach().numpy()
    logits = embed(detector, pack, clips) @ weight.T + bias
    nll = np.log(np.exp(logits).sum(axis=1)) - logits[clips, pack.id_index]
    np.testing.assert_allclose(nll, detector.score_pack(pack, clips).scores, rtol=1e-4)


def test_cosines_of_the_embeddings_are_the_scores_of_a_cosine_head() -> None:
    detector = detector_of("arcface")
    pack = pack_of(detector.members[0].config.frontend.crop_samples)
    clips = np.arange(3)
    head = detector.members[0].network.total_conv
    ways = torch.nn.functional.normalize(head.directions).double().detach().numpy()
    found = embed(detector, pack, clips)
    cosines = (found / np.linalg.norm(found, axis=1, keepdims=True)) @ ways.T
    expected = head.scale * (1 - cosines[clips, pack.id_index])
    np.testing.assert_allclose(
        detector.score_pack(pack, clips).scores, expected, rtol=1e-3, atol=1e-5
    )


def test_a_clip_is_the_mean_of_its_windows() -> None:
    detector = detector_of("complex with attention")
    whole = pack_of(1500, n_clips=2)
    offsets = window_offsets(1500, FRONTEND)
    assert len(offsets) > 2
    crops = [
        whole.samples[start + offset : start + offset + FRONTEND.crop_samples]
        for start in whole.starts
        for offset in offsets
    ]
    n = len(crops)
    windows = make_pack(crops, [0] * len(offsets) + [1] * len(offsets), [0] * n, ["test"] * n)
    of_windows = embed(detector, windows, np.arange(n)).reshape(2, len(offsets), -1)
    np.testing.assert_allclose(
        embed(detector, whole, np.arange(2)), of_windows.mean(axis=1), rtol=1e-4, atol=1e-6
    )
    # in the order asked for, whatever else the pack holds
    np.testing.assert_array_equal(
        embed(detector, whole, np.array([1])), embed(detector, whole, np.arange(2))[1:]
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_classifier_has_an_embedding_and_no_other_system(system: str) -> None:
    detector = detector_of(system)
    short = pack_of(100)
    kind = detector.members[0].config.network.kind
    if kind not in CLASSIFIERS:
        with pytest.raises(EmbeddingError, match=f"{kind!r} tells no machine ids apart"):
            embed(detector, short, np.arange(3))
        return
    found = embed(detector, short, np.arange(3))
    assert found.shape[0] == 3
    assert found.shape[1] >= 2
    assert np.isfinite(found).all()
    assert not detector.members[0].network.total_conv._forward_pre_hooks


def test_an_unknown_machine_is_refused_by_name() -> None:
    with pytest.raises(DetectorError, match=r"id_02 are unknown.*knows id_00, id_04"):
        embed(make_detector(machine_ids=("id_00", "id_04")), pack_of(800), np.arange(3))


@pytest.mark.parametrize(
    ("n_clips", "expected"),
    [(500, (30, 1000)), (459, (30, 1000)), (91, (30, 91000 / 459)), (10, (3, 10000 / 459))],
)
def test_settings_are_the_papers_where_the_clips_allow(
    n_clips: int, expected: tuple[float, float]
) -> None:
    assert settings(n_clips) == pytest.approx(expected)


@pytest.mark.parametrize("n_each", [5, 24, 100])
def test_clusters_stay_apart(n_each: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], n_each)
    embeddings = rng.normal(size=(2 * n_each, 8)) + 12 * labels[:, None]
    places = map_to_plane(embeddings)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    # and no clip is thrown far from all others, as a rate too high for few clips does
    assert distances.min(axis=1).max() < 0.25 * np.ptp(places, axis=0).max()


@pytest.mark.parametrize("rounding", [0.0, 1e-15])
def test_clips_that_are_all_alike_have_one_place(rounding: float) -> None:
    """In a process of its own, for scikit-learn's code dies of them."""
    script = (
        "import numpy as np; from mimimi_core.tsne import map_to_plane; "
        f"clips = 1 + {rounding} * np.random.default_rng(0).normal(size=(12, 4)); "
        "assert not map_to_plane(clips).any()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_map_is_the_same_every_time() -> None:
    embeddings = np.random.default_rng(0).normal(size=(20, 8))
    np.testing.assert_array_equal(map_to_plane(embeddings), map_to_plane(embeddings))


def test_a_figure_has_a_panel_per_id_with_every_labelled_clip() -> None:
    pack = tone_pack(n_ids=3, n_other=3)
    few = np.flatnonzero((pack.id_index == 1) & (pack.splits == "test"))[:3]
    splits = pack.splits.copy()
    splits[few] = "train"
    figure = tsne_figure(make_detector(), dataclasses.replace(pack, splits=splits))
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.split(",")[0] for title in titles] == ["id_00: 6 normal", "id_04: 6 normal"]
    assert "6 anomalous\nperplexity 4, learning rate 26" in titles[0]
    for axes in figure.axes:
        assert [len(points.get_offsets()) for points in axes.collections] == [6, 6]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["normal", "anomaly"]


def test_dollars_in_a_name_are_no_formula(tmp_path: Path) -> None:
    ids = ("id_$a^$", "id_b")
    pack = dataclasses.replace(tone_pack(), machine_ids=ids, machine_type="$fan^$")
    figure = tsne_figure(make_detector(machine_ids=ids), pack)
    figure.savefig(tmp_path / "tsne.png")
    assert figure.axes[0].get_title().startswith("id_$a^$: ")


@pytest.mark.parametrize("machine_ids", [None, ["id_02"]])
def test_too_few_clips_are_refused_with_their_number(machine_ids: list[str] | None) -> None:
    pack = tone_pack(n_other=2)
    with pytest.raises(EmbeddingError, match=r"at least 10 .* 8 of id_02"):
        tsne_figure(make_detector(machine_ids=IDS), pack, machine_ids)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved detector; the command packs into a folder of the test."""
    monkeypatch.chdir(tmp_path)
    make_detector(NetworkConfig(channels=2, depth=3), machine_ids=IDS).save(tmp_path / "model")
    return tmp_path / "model"


def command(model: Path, data: Path, *more: str) -> int:
    return main(["--model", str(model), "--data", str(data), "--out", "out/fan.png", *more])


def test_command_hears_clips_at_the_rate_of_the_model(model: Path, tmp_path: Path) -> None:
    make_detector(frontend=dataclasses.replace(FRONTEND, sample_rate=8000), machine_ids=IDS).save(
        model
    )
    data = write_dcase2020(tmp_path / "data", n_test=6)
    assert command(model, data, "--machine-type", "fan") == 0
    assert [open_pack(path).sample_rate for path in Path("runs/packs").iterdir()] == [8000]


def test_command(model: Path, tmp_path: Path) -> None:
    data = write_dcase2020(tmp_path / "data", n_test=6)
    assert command(model, data, "--machine-type", "fan") == 0
    whole = Path("out/fan.png").read_bytes()
    assert whole.startswith(b"\x89PNG")
    assert command(model, data, "--machine-type", "fan", "--machine-id", "id_02") == 0
    assert Path("out/fan.png").read_bytes() != whole


def test_command_says_where_it_cannot_pack(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dcase2020(tmp_path / "data", n_test=6)
    Path("runs").touch()
    assert command(model, data, "--machine-type", "fan") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("runs/packs: must be a folder that can be written, ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--machine-type", "fan"], ["at least 10", "4 of id_00"]),
        (["--machine-type", "fan", "--machine-id", "id_08"], ["0 of id_08"]),
        (["--machine-type", "pump"], ["holds a fan model", "'pump'"]),
        (["--machine-type", "fan", "--model", "nowhere"], ["nowhere"]),
        (["--machine-type", "fan", "--data", "nowhere"], ["nowhere"]),
    ],
)
def test_command_refuses_in_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    words: list[str],
) -> None:
    data = write_dcase2020(tmp_path / "data", n_test=2)
    assert command(model, data, *args) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words)
    assert not Path("out").exists()
