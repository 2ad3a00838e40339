"""The command that trains once, on recordings without a labelled anomaly."""

import shutil
from pathlib import Path

import pytest

from mimimi_core import evaluate
from mimimi_core.config import ID_FREE
from mimimi_core.detector import Detector
from mimimi_core.train import main
from tests.audio_fixtures import write_dcase2020
from tests.model_fixtures import TINY_PARAMS


def _train(data: Path, out: Path, **params: object) -> int:
    given = TINY_PARAMS | {"train.epochs": 1} | params
    return main(
        ["--machine-type", "fan", "--data", str(data), "--out", str(out), "--params"]
        + [f"{name}={value}" for name, value in given.items()]
    )


def _unlabelled(root: Path, n_train: int) -> Path:
    data = write_dcase2020(root, n_train=n_train)
    shutil.rmtree(data / "fan" / "test")
    return data


def test_too_few_normal_clips_to_select_by_are_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _unlabelled(tmp_path / "data", n_train=2)  # of which none is held out
    assert _train(data, tmp_path) == 2
    said = capsys.readouterr().err
    assert "fan: the objective id_swap_auc needs held-out normal clips of two machine ids" in said
    assert "epoch" not in said


@pytest.mark.parametrize("place", ["packs", "fan", "fan-evaluation", "fan-evaluation/roc.png"])
def test_what_cannot_be_written_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    data, out = write_dcase2020(tmp_path / "data", n_train=10), tmp_path / "out"
    in_the_way = out / place
    if place.endswith(".png"):
        in_the_way.mkdir(parents=True)
    else:
        out.mkdir()
        in_the_way.touch()
    assert _train(data, out) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "must be a folder that can be written" in line
    assert str(in_the_way) in line


@pytest.mark.parametrize("place", ["packs", "fan-evaluation"])
def test_an_evaluation_that_cannot_be_written_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    data, out = write_dcase2020(tmp_path / "data", n_train=10), tmp_path / "out"
    assert _train(data, tmp_path) == 0
    out.mkdir()
    (out / place).touch()
    args = ["--model", tmp_path / "fan", "--data", data, "--out", out]
    assert evaluate.main([str(arg) for arg in args]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "must be a folder that can be written" in line
    assert str(out / place) in line


@pytest.mark.parametrize("kind", ID_FREE)
def test_a_system_that_knows_no_ids_needs_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    data = _unlabelled(tmp_path / "data", n_train=10)
    logmel = {"frontend.kind": "logmel", "frontend.n_mels": 8, "network.kind": kind}
    assert _train(data, tmp_path, **logmel) == 0
    assert "normal_log_likelihood" in capsys.readouterr().err
    assert Detector.load(tmp_path / "fan").machine_ids == ("id_00", "id_02")
