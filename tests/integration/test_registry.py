"""Registered detectors in a real MLflow store, SQLite and a server on loopback."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mimimi_core.config import FrontendConfig, FrontendKind, NetworkConfig, TrialConfig
from mimimi_core.detector import Detector, Member
from mimimi_core.network import build_network
from mimimi_core.scoring import Threshold
from search.registry import Registry
from search.tracking import Tracker, TrackingError
from tests.tracking_fixtures import (
    runs_of,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_detector(tmp_path_factory.mktemp("detector"))


def _save_detector(folder: Path, kind: FrontendKind = "complex") -> Path:
    config = TrialConfig(
        network=NetworkConfig(channels=2, depth=3), frontend=FrontendConfig(kind=kind, n_frames=16)
    )
    network = build_network(config.network, 2, config.frontend)
    Detector(
        members=[Member(config=config, network=network)],
        machine_type="fan",
        machine_ids=("id_00", "id_02"),
        thresholds={
            "id_00": Threshold(value=0.5, false_alarm_rate=0.1, n_normals=9),
            "id_02": None,
        },
    ).save(folder)
    return folder


def test_registered_detector_is_versioned_promoted_and_fetched(
    uri: str, study: str, tmp_path: Path, detector_folder: Path
) -> None:
    tracker, registry = Tracker(uri, tmp_path / "artifacts", study), Registry(uri)
    run_id = tracker.parent_run("fan")
    assert registry.champion("fan") is None
    with pytest.raises(TrackingError, match="no champion of machine type 'fan'.*search.run"):
        registry.download_champion("fan", tmp_path / "champion")

    tags, metrics = {"study": study, "data_hash": "0123"}, {"test_auc": 0.8, "test_pauc": None}
    assert registry.register("fan", detector_folder, run_id, tags, metrics) == 1
    assert registry.register("fan", detector_folder, run_id, tags, metrics) == 1  # the same
    assert registry.champion("fan") is None
    registry.set_champion("fan", 1)
    version, found = registry.champion("fan")
    assert (version, found["study"], found["data_hash"]) == (1, study, "0123")
    assert runs_of(tracker, uri)["fan"].data.metrics["test_auc"] == 0.8

    folder = registry.download_champion("fan", tmp_path / "champion")
    assert sorted(file.name for file in folder.iterdir()) == [
        "detector.json",
        "weights.safetensors",
    ]
    assert Detector.load(folder).machine_ids == ("id_00", "id_02")

    other = shutil.copytree(detector_folder, tmp_path / "other")
    (other / "detector.json").write_text((other / "detector.json").read_text() + "\n")
    assert registry.register("fan", other, run_id, tags, metrics) == 2
    assert registry.champion("fan")[0] == 1


@pytest.mark.parametrize("machine_type", ["pump_1.5kW", "fan's", "50 % (left)+#?"])
def test_any_name_of_a_type_is_registered_and_found_again(
    sqlite_uri: str, tmp_path: Path, detector_folder: Path, machine_type: str
) -> None:
    tracker, registry = Tracker(sqlite_uri, tmp_path / "artifacts", "study"), Registry(sqlite_uri)
    run_id = tracker.parent_run(machine_type)
    assert [registry.register(machine_type, detector_folder, run_id, {}, {}) for _ in "ab"] == [
        1,
        1,
    ]
    registry.set_champion(machine_type, 1)
    assert registry.machine_types() == [machine_type]
    assert [version.number for version in registry.versions(machine_type)] == [1]
    folder = registry.download_champion(machine_type, tmp_path / "champion")
    assert Detector.load(folder).machine_ids == ("id_00", "id_02")


@pytest.mark.parametrize("kind", ["complex", "logmel"])
def test_registered_detector_predicts_with_the_code_it_carries_and_what_it_requires(
    sqlite_uri: str, tmp_path: Path, kind: FrontendKind
) -> None:
    detector_folder = _save_detector(tmp_path / "detector", kind)
    tracker, registry = Tracker(sqlite_uri, tmp_path / "artifacts", "study"), Registry(sqlite_uri)
    registry.register("fan", detector_folder, tracker.parent_run("fan"), {}, {})
    registry.set_champion("fan", 1)
    model = tmp_path / "artifacts" / "study" / "models"
    assert not [p for p in model.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]

    (requirements,) = model.rglob("requirements.txt")
    required = {line.partition("==")[0] for line in requirements.read_text().splitlines()}
    missing = sorted({"torchaudio", "soundfile", "sklearn", "matplotlib"} - required)

    waveform = np.random.default_rng(0).integers(-9999, 9999, 32000, dtype=np.int16)
    np.save(tmp_path / "waveform.npy", waveform)
    script = f"""
import json, mlflow, numpy as np, pandas as pd, sys
sys.modules.update(dict.fromkeys({missing}))  # as if they were not installed
mlflow.set_tracking_uri({sqlite_uri!r})
model = mlflow.pyfunc.load_model("models:/mimimi-fan@champion")
waveform = np.load("waveform.npy") / 32768
frame = pd.DataFrame({{"machine_id": ["id_00", "id_02"], "waveform": [waveform, list(waveform)]}})
import mimimi_core
print(json.dumps([mimimi_core.__file__, model.predict(frame).to_dict("list")]))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    core, rows = json.loads(done.stdout)
    assert "/code/mimimi_core/" in core
    detector = Detector.load(detector_folder)
    for index, machine_id in enumerate(("id_00", "id_02")):
        expected = detector.score([waveform], machine_id)[0]
        assert rows["score"][index] == pytest.approx(expected, abs=1e-6)
    assert rows["threshold"][0] == 0.5
    assert rows["decision"][0] in ("normal", "anomaly")
    assert rows["decision"][1] not in ("normal", "anomaly")  # no threshold, no decision


def test_a_store_that_cannot_be_locked_is_told_as_such(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*args: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    registry = Registry(sqlite_uri)
    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(TrackingError, match=r"--tracking-uri must lie on .*: No locks available;"):
        registry.replace_champion("fan", None, 1)
