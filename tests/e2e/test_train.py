"""One training without a search, and a saved model evaluated again."""

import csv
import shutil
from pathlib import Path

import pytest

from mimimi_core import evaluate, train
from search import score
from tests.audio_fixtures import real_clips, write_dcase2020

pytestmark = pytest.mark.e2e

IDS = ("id_00", "id_02", "id_04", "id_06")
FIGURES = {"per_id.csv", "roc.png", "scores.png", "decisions.png", "ids.png"}
SMALL = (
    "--params",
    "network.channels=2",
    "network.depth=3",
    "frontend.n_fft=256",
    "frontend.hop=256",
)
YARDSTICK = (
    "--params", "network.kind=mahalanobis", "frontend.kind=logmel", "frontend.n_mels=32",
    "train.epochs=1",
)  # fmt: skip


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    lines = (folder / "per_id.csv").read_text().splitlines()
    return {row["machine_id"]: row for row in csv.DictReader(lines)}


def scored(capsys: pytest.CaptureFixture[str], model: Path, clip: Path) -> dict[str, str]:
    machine_id = clip.stem.rpartition("_")[0].partition("_")[2]
    args = ["--model", model, "--machine-type", model.name, "--machine-id", machine_id, clip]
    assert score.main([str(arg) for arg in args]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    return row


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """Where the yardstick was trained on the embedded fans."""
    out = tmp_path_factory.mktemp("trained")
    args = ("--machine-type", "fan", "--data", str(embedded), "--out", str(out))
    assert train.main([*args, *YARDSTICK]) == 0
    return out


def test_a_training_leaves_a_table_figures_and_a_model(
    trained: Path, embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(trained / "fan-evaluation")
    assert tuple(rows) == (*IDS, "mean", "all")
    assert {path.name for path in (trained / "fan-evaluation").iterdir()} == FIGURES
    labelled = list((embedded / "fan" / "test").glob("*.wav"))
    assert 0 < int(rows["all"]["n_normal"]) < len(labelled)
    assert float(rows["mean"]["auc"]) > 0.6  # see mimimi_core/synth.py
    counts = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    for name in (*counts, "n_normal", "n_anomaly"):
        assert int(rows["all"][name]) == sum(int(rows[machine_id][name]) for machine_id in IDS)
    row = scored(capsys, trained / "fan", next(path for path in labelled if "_id_06_" in path.name))
    assert float(row["threshold"]) == pytest.approx(float(rows["id_06"]["threshold"]), abs=1e-6)


def test_a_saved_model_is_evaluated_as_it_was_after_its_training(
    trained: Path, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--model", str(trained / "fan"), "--data", str(embedded), "--out", str(tmp_path))
    assert evaluate.main(list(args)) == 0
    said = capsys.readouterr().out
    assert rows_of(tmp_path / "fan-evaluation") == rows_of(trained / "fan-evaluation")
    assert {path.name for path in (tmp_path / "fan-evaluation").iterdir()} == FIGURES
    for name in (*IDS, "mean", "all"):
        assert sum(line.startswith(f"{name} ") for line in said.splitlines()) == 1
    assert "AUC over ids: best" in said


def test_a_model_is_evaluated_on_some_of_its_machines(
    trained: Path, embedded: Path, tmp_path: Path
) -> None:
    home = tmp_path / "data" / "fan" / "test"
    home.mkdir(parents=True)
    for clip in (embedded / "fan" / "test").glob("*_id_04_*.wav"):
        shutil.copy(clip, home)
    args = ("--model", str(trained / "fan"), "--data", str(tmp_path / "data"))
    assert evaluate.main([*args, "--out", str(tmp_path)]) == 0
    rows, known = rows_of(tmp_path / "fan-evaluation"), rows_of(trained / "fan-evaluation")
    assert rows["id_04"] == known["id_04"] | {
        name: rows["id_04"][name]
        for name in ("auc_low", "auc_high")  # of another draw
    }
    assert rows["mean"]["auc"] == known["id_04"]["auc"]
    assert rows["id_00"]["n_normal"] == "0"
    assert rows["id_00"]["auc"] == rows["id_00"]["precision"] == ""


def test_a_model_is_not_evaluated_on_machines_it_does_not_know(
    trained: Path, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "data" / "fan" / "test"
    home.mkdir(parents=True)
    clip = next((embedded / "fan" / "test").glob("*.wav"))
    shutil.copy(clip, home / "normal_id_08_00000000.wav")
    args = ("--model", str(trained / "fan"), "--data", str(tmp_path / "data"))
    assert evaluate.main([*args, "--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "id_00, id_02, id_04, id_06, not id_08" in line


def test_real_clips_too_few_for_most_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = real_clips() / "dcase2020-mini"
    args = ("--machine-type", "slider", "--data", str(data), "--out", str(tmp_path))
    assert train.main([*args, "--epochs", "1", *SMALL]) == 0
    said = capsys.readouterr().out.splitlines()
    for name in (*IDS, "mean", "all"):
        assert sum(line.startswith(f"{name} ") for line in said) == 1
    assert any("no threshold" in line and "id_06" in line for line in said)
    rows = rows_of(tmp_path / "slider-evaluation")
    assert tuple(rows) == (*IDS, "mean", "all")
    for machine_id in IDS:
        row = rows[machine_id]
        has_both = int(row["n_normal"]) > 0 and int(row["n_anomaly"]) > 0
        assert (row["auc"] != "") == has_both
        if not row["threshold"]:
            assert row["precision"] == row["recall"] == row["f1"] == row["true_positives"] == ""
    clip = min((data / "slider" / "test").glob("*_id_00_*.wav"))
    row = scored(capsys, tmp_path / "slider", clip)
    assert row["decision"] in ("normal", "anomaly")


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (("--machine-type", "turbine"), ["one of those in", "fan, pump", "'turbine'"]),
        (("--machine-type", "fan", "--epochs", "0"), ["train.epochs must be >= 1, got 0"]),
        (("--machine-type", "fan", "--params", "network.chanels=3"), ["'network.chanels'"]),
        (("--machine-type", "fan", "--params", "train.lr=fast"), ["train.lr", "float", "'fast'"]),
        (("--machine-type", "fan", "--params", "train.lr=NaN"), ["train.lr must be > 0"]),
        (
            ("--machine-type", "fan", "--params", "network.kind=mahalanobis"),
            ["frontend.kind must be", "'mahalanobis'"],
        ),
    ],
)
def test_bad_input_of_a_training(
    args: tuple[str, ...],
    wanted: list[str],
    tmp_path: Path,
    embedded: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main([*args, "--data", str(embedded), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    for words in wanted:
        assert words in said.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_without_a_value(
    tmp_path: Path, embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--machine-type", "fan", "--data", str(embedded), "--out", str(tmp_path))
    with pytest.raises(SystemExit, match="2"):
        train.main([*args, "--params", "network.channels"])
    assert "must be NAME=VALUE, got 'network.channels'" in capsys.readouterr().err


def test_no_such_model(tmp_path: Path, embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    assert evaluate.main(["--model", str(missing), "--data", str(embedded)]) == 2
    assert str(missing) in capsys.readouterr().err


def test_an_id_without_training_clips_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = write_dcase2020(tmp_path / "data", ids=IDS[:3], n_test=8)
    for path in (data / "fan" / "train").glob("*_id_04_*"):
        path.unlink()
    args = ("--machine-type", "fan", "--data", str(data), "--out", str(tmp_path), *SMALL)
    assert train.main([*args, "train.epochs=1"]) == 0
    assert "fan id_04 has no training clips: it cannot be judged" in caplog.text
    assert "id_04: no AUC, left out of the mean, and no threshold" in capsys.readouterr().out
