import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mimimi_core import detector as module
from mimimi_core.detector import Detector, DetectorError, Member
from mimimi_core.network import build_network
from mimimi_core.scoring import Threshold
from search.conclude import _write
from tests.audio_fixtures import noise
from tests.model_fixtures import CPU, NETWORK, tiny_config, tone_pack

IDS = ("id_00", "id_02", "id_04")
NAMES = ("detector.json", "weights.safetensors")
WAVEFORMS = [noise(n, length)[:, 0] for n, length in enumerate((800, 300, 2000))]


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    network = build_network(NETWORK, len(IDS))
    network(torch.randn(16, 2, 33, 8))  # so that the running statistics have to travel too
    return Detector(
        members=[Member(config=tiny_config(lr=0.02), network=network)],
        machine_type="fan",
        machine_ids=IDS,
        thresholds={
            "id_00": Threshold(value=0.25, false_alarm_rate=0.1, n_normals=12),
            "id_02": Threshold(value=99.0, false_alarm_rate=0.1, n_normals=3),
            "id_04": None,
        },
        trained_on=np.array([0, 7, 2**64 - 1], np.uint64),
    )


@pytest.fixture
def folder(detector: Detector, tmp_path: Path) -> Path:
    detector.save(tmp_path / "models" / "fan")
    return tmp_path / "models" / "fan"


def test_a_saved_detector_is_two_files_and_scores_the_same(
    detector: Detector, folder: Path
) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["detector.json", "weights.safetensors"]
    loaded = Detector.load(folder)
    assert [m.config for m in loaded.members] == [m.config for m in detector.members]
    for name in ("machine_type", "machine_ids", "thresholds"):
        assert getattr(loaded, name) == getattr(detector, name)
    np.testing.assert_array_equal(loaded.trained_on, detector.trained_on)
    for machine_id in IDS:
        found, expected = (d.score(WAVEFORMS, machine_id) for d in (loaded, detector))
        assert found.dtype == np.float64
        assert found.shape == (3,)
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(loaded.score(WAVEFORMS, "id_00"), loaded.score(WAVEFORMS, "id_02"))


def test_saving_again_replaces_the_detector(detector: Detector, folder: Path) -> None:
    with torch.no_grad():
        detector.members[0].network.total_conv.bias.add_(torch.tensor([0.0, 3.0, 6.0]))
    detector.save(folder)
    np.testing.assert_array_equal(
        Detector.load(folder).score(WAVEFORMS, "id_00"), detector.score(WAVEFORMS, "id_00")
    )


def _edit(key: str, value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / "detector.json").read_text())
        settings[key] = value
        (folder / "detector.json").write_text(json.dumps(settings))

    return damage


def _drop(key: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / "detector.json").read_text())
        del settings[key]
        (folder / "detector.json").write_text(json.dumps(settings))

    return damage


def _cut(name: str, n_bytes: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:n_bytes])

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "detector.json").unlink(),
        lambda folder: (folder / "weights.safetensors").unlink(),
        _cut("detector.json", 0),
        _cut("detector.json", 100),
        _cut("weights.safetensors", 0),
        _cut("weights.safetensors", 50),
        _cut("weights.safetensors", 2000),
        lambda folder: (folder / "detector.json").write_bytes(b"\xff\xfe\x00"),
        lambda folder: (folder / "detector.json").write_text("[]"),
        lambda folder: (folder / "weights.safetensors").write_bytes(bytes(range(256))),
        _drop("members"),
        _edit("members", []),
        _drop("machine_ids"),
        _drop("machine_type"),
        _drop("thresholds"),
        _edit("thresholds", {"id_00": None}),
        _edit("thresholds", []),
        _edit("thresholds", {machine_id: {"value": 1.0} for machine_id in IDS}),
        _edit("machine_ids", ["id_00", "id_02"]),
        _edit("members", [{"params": {"network.channels": 3}, "scale": None}]),
        _edit("members", [{"params": {"network.channles": 2}, "scale": None}]),
        _edit("members", [{"params": {}}]),
    ],
)
def test_a_damaged_detector_is_refused_by_folder(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    damage(folder)
    with pytest.raises(DetectorError, match="models/fan holds no readable detector"):
        Detector.load(folder)


def test_a_model_of_before_ensembles_is_read(detector: Detector, folder: Path) -> None:
    settings = json.loads((folder / "detector.json").read_text())
    (member,) = settings.pop("members")
    settings["params"] = member["params"]
    (folder / "detector.json").write_text(json.dumps(settings))
    weights = load_file(folder / "weights.safetensors")
    plain = {name.removeprefix("0."): w for name, w in weights.items() if name != "trained_on"}
    save_file(plain, folder / "weights.safetensors")
    assert len(Detector.load(folder).trained_on) == 0
    np.testing.assert_array_equal(
        Detector.load(folder).score(WAVEFORMS, "id_00"), detector.score(WAVEFORMS, "id_00")
    )


def test_a_device_without_memory_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised by hand: no GPU was filled for it."""

    move = torch.nn.Module.to

    def refuse(network: torch.nn.Module, *args: Any, **options: Any) -> torch.nn.Module:
        if torch.device("cuda") in args:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return move(network, *args, **options)

    monkeypatch.setattr(torch.nn.Module, "to", refuse)
    monkeypatch.setattr(module, "pick_device", lambda: torch.device("cuda"))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        Detector.load(folder)
    assert Detector.load(folder, CPU).device == CPU


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match="nothing holds no readable detector"):
        Detector.load(tmp_path / "nothing")


def test_a_failure_half_way_leaves_the_old_weights(
    detector: Detector, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def write_half(path: Path, content: bytes) -> None:
        write(path, content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="no space"):
        detector.save(folder)
    np.testing.assert_array_equal(
        Detector.load(folder).score(WAVEFORMS, "id_00"), detector.score(WAVEFORMS, "id_00")
    )


def _save(detector: Detector, folder: Path) -> None:
    detector.save(folder)


def _hand_over(detector: Detector, folder: Path) -> None:
    """As a search does with what a worker saved."""
    saved = folder.parent / "worker"
    detector.save(saved)
    _write({name: (saved / name).read_bytes() for name in NAMES}, folder)


@pytest.mark.parametrize("save", [_save, _hand_over])
@pytest.mark.parametrize("n_before", [0, 1, 2])
def test_a_kill_half_way_through_never_mixes_two_detectors(
    detector: Detector,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[Detector, Path], None],
    n_before: int,
) -> None:
    """`n_before` of the renames in the folder still come about."""
    old = detector.score(WAVEFORMS, "id_00")
    with torch.no_grad():
        detector.members[0].network.total_conv.bias.add_(torch.tensor([0.0, 3.0, 6.0]))
    detector.thresholds = dict.fromkeys(IDS)
    replace, n_renamed = Path.replace, 0

    def killed(path: Path, target: Path) -> Path:
        nonlocal n_renamed
        n_renamed += target.parent == folder
        if n_renamed > n_before:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        save(detector, folder)
    try:
        found = Detector.load(folder)
    except DetectorError:
        return  # no detector is told from one
    is_old = np.array_equal(found.score(WAVEFORMS, "id_00"), old)
    assert is_old == (found.thresholds["id_00"] is not None)


def test_an_unknown_id_is_refused_with_the_known_ones(detector: Detector) -> None:
    expected = "machine id 'id_06' is unknown to this fan model; it knows id_00, id_02, id_04"
    with pytest.raises(DetectorError, match=expected):
        detector.score(WAVEFORMS, "id_06")


def test_floats_are_refused_rather_than_taken_for_counts(detector: Detector) -> None:
    with pytest.raises(DetectorError, match="int16.*float64"):
        detector.score([WAVEFORMS[0], WAVEFORMS[1] / 32768], "id_00")


def test_clips_of_a_pack_are_scored_each_under_its_own_id(detector: Detector) -> None:
    pack = tone_pack(n_ids=2, n_train=2, n_other=1)
    pack = dataclasses.replace(pack, machine_ids=("id_00", "id_04"))  # the network has 3
    clips = np.array([5, 1, len(pack.names) - 1])
    found = detector.score_pack(pack, clips).scores
    assert {pack.machine_ids[i] for i in pack.id_index[clips]} == {"id_00", "id_04"}
    for score, clip in zip(found, clips, strict=True):
        waveform = pack.samples[pack.starts[clip] : pack.starts[clip] + pack.lengths[clip]]
        machine_id = pack.machine_ids[pack.id_index[clip]]
        assert score == pytest.approx(detector.score([waveform], machine_id)[0], abs=1e-5)


def test_a_score_above_the_threshold_is_an_anomaly(detector: Detector) -> None:
    assert detector.decide(0.26, "id_00") == "anomaly"
    assert detector.decide(0.25, "id_00") == "normal"
    assert detector.decide(0.26, "id_02") == "normal"
    assert detector.decide(0.26, "id_04") is None


def test_the_pyfunc_scores_rows_of_waveforms(detector: Detector, folder: Path) -> None:
    waveforms = [WAVEFORMS[0] / 32768, list(WAVEFORMS[1] / 32768), WAVEFORMS[2] / 32768]
    rows = pd.DataFrame({"machine_id": IDS, "waveform": waveforms})
    found = module._load_pyfunc(str(folder)).predict(rows)
    assert list(found.columns) == ["score", "threshold", "decision"]
    for index, machine_id in enumerate(IDS):
        expected = detector.score([WAVEFORMS[index]], machine_id)[0]
        assert found["score"][index] == pytest.approx(expected, abs=1e-12)
    assert found["threshold"][:2].tolist() == [0.25, 99.0]
    assert found["decision"][:2].tolist() == [
        detector.decide(found["score"][index], IDS[index]) for index in (0, 1)
    ]
    assert found["decision"][1] == "normal"


@pytest.mark.parametrize("ids", [["id_04"], ["id_04", "id_00"], []])
def test_what_the_pyfunc_lacks_is_always_said_the_same_way(folder: Path, ids: list[str]) -> None:
    """NaN in the column of numbers and None in that of words, whatever the other rows hold."""
    rows = pd.DataFrame({"machine_id": ids, "waveform": [WAVEFORMS[0] / 32768] * len(ids)})
    found = module._load_pyfunc(str(folder)).predict(rows)
    assert len(found) == len(ids)
    assert [str(kind) for kind in found.dtypes] == ["float64", "float64", "object"]
    for machine_id, threshold, decision in zip(
        ids, found["threshold"], found["decision"], strict=True
    ):
        assert np.isnan(threshold) == (machine_id == "id_04")
        assert (decision is None) == (machine_id == "id_04")


@pytest.mark.parametrize("value", [1.0001, -1.5, 300.0, float("nan"), float("inf")])
def test_the_pyfunc_refuses_what_is_no_waveform(folder: Path, value: float) -> None:
    waveform = WAVEFORMS[0] / 32768
    waveform[17] = value
    rows = pd.DataFrame(
        {"machine_id": ["id_00", "id_02"], "waveform": [WAVEFORMS[1] / 32768, waveform]}
    )
    with pytest.raises(ValueError, match=r"row 1: waveform must .*\[-1, 1\]"):
        module._load_pyfunc(str(folder)).predict(rows)


@pytest.mark.parametrize("waveform", [[], [[0.1, 0.2], [0.3, 0.4]], 0.5])
def test_the_pyfunc_refuses_waveforms_of_no_or_many_channels(folder: Path, waveform: Any) -> None:
    rows = pd.DataFrame({"machine_id": ["id_00"], "waveform": [waveform]})
    with pytest.raises(ValueError, match="row 0: waveform must"):
        module._load_pyfunc(str(folder)).predict(rows)


def test_the_pyfunc_takes_full_scale(detector: Detector, folder: Path) -> None:
    loud = np.tile([1.0, -1.0], 400)
    rows = pd.DataFrame({"machine_id": ["id_00"], "waveform": [loud]})
    as_int16 = np.tile([32767, -32768], 400).astype(np.int16)
    expected = detector.score([as_int16], "id_00")[0]
    assert module._load_pyfunc(str(folder)).predict(rows)["score"][0] == pytest.approx(expected)
