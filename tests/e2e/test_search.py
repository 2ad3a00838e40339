"""The commands of the README, as a user runs them."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mimimi_core.audio import read_clip
from tests.audio_fixtures import real_clips
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e


def command(*args: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in the project's folder; it must succeed."""
    run = subprocess.run(
        [sys.executable, "-m", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run


def search(*args: object) -> tuple[dict[str, Any], str]:
    """Run a search: its last line of stdout, and all it said besides."""
    run = command("search.run", *args)
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(out: Path, embedded: Path) -> tuple[dict[str, Any], str]:
    """A whole small search on two machine types."""
    return search("--space", "spaces/smoke.yaml", "--data", embedded, "--out", out)


def test_summary(finished: tuple[dict[str, Any], str], out: Path) -> None:
    summary, said = finished
    assert summary["tracking_uri"] == f"sqlite:///{out}/mlflow.db"
    assert set(summary["machine_types"]) == {"fan", "pump"}
    for machine_type, outcome in summary["machine_types"].items():
        assert outcome["trials"] == 3
        assert outcome["complete"] + outcome["pruned"] == 3
        assert outcome["failed"] == 0
        assert 0 <= outcome["best_val_auc"] <= 1
        low, high = outcome["test_auc_ci"]
        assert low <= outcome["test_auc"] <= high
        assert outcome["champion_version"] == 1
        assert outcome["promoted"] is True
        assert f"{machine_type} trial 2 " in said


def test_mlflow_shows_parents_children_and_figures(
    finished: tuple[dict[str, Any], str], out: Path, tmp_path: Path
) -> None:
    summary, _ = finished
    client = MlflowClient(summary["tracking_uri"])
    experiment = client.get_experiment_by_name(summary["study"])
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = {r.info.run_id: r for r in runs if "mlflow.parentRunId" not in r.data.tags}
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert sorted(r.info.run_name for r in parents.values()) == ["fan", "pump"]
    assert len(children) == 6
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] in parents
        assert child.data.tags["state"] in ("complete", "pruned")
        assert {"network.channels", "train.lr", "network.depth"} <= set(child.data.params)
        assert {"train_loss", "val_auc", "val_pauc", "val_auc/id_00"} <= set(child.data.metrics)
        assert not any("config" in name or "time_" in name for name in child.data.metrics)
    for run_id, parent in parents.items():
        outcome = summary["machine_types"][parent.info.run_name]
        assert parent.data.metrics["test_auc"] == outcome["test_auc"]
        (winner,) = [artifact.path for artifact in client.list_artifacts(run_id, "evaluation")]
        stored = [artifact.path for artifact in client.list_artifacts(run_id, winner)]
        pictures = ("decisions", "ids", "rainbowgrams", "roc", "scores", "tsne")
        names = sorted([*(f"{name}.png" for name in pictures), "per_id.csv"])
        assert sorted(stored) == [f"{winner}/{name}" for name in names]
        table = client.download_artifacts(run_id, f"{winner}/per_id.csv", str(tmp_path))
        rows = {
            row["machine_id"]: row for row in csv.DictReader(Path(table).read_text().splitlines())
        }
        assert float(rows["mean"]["auc"]) == outcome["test_auc"]


def test_champion_carries_its_provenance(finished: tuple[dict[str, Any], str]) -> None:
    summary, _ = finished
    client = MlflowClient(summary["tracking_uri"])
    version = client.get_model_version_by_alias("mimimi-fan", "champion")
    assert version.tags["study"] == summary["study"]
    assert version.tags["decision"] == "promoted: there was no champion"
    assert {"trial", "data_hash", "git_commit"} <= set(version.tags)
    assert "[" in version.tags["test_auc"]


def test_score_agrees_with_the_registered_pyfunc(
    finished: tuple[dict[str, Any], str], embedded: Path
) -> None:
    summary, _ = finished
    uri = summary["tracking_uri"]
    clips = sorted((embedded / "pump" / "test").glob("*_id_04_*"))[:3]
    said = command(
        "search.score", "--machine-type", "pump", "--machine-id", "id_04", "--tracking-uri", uri,
        *clips,
    )  # fmt: skip
    rows = list(csv.DictReader(said.stdout.splitlines()))
    assert list(rows[0]) == ["clip", "machine_id", "score", "threshold", "decision"]
    assert [row["clip"] for row in rows] == [str(clip) for clip in clips]
    for row in rows:
        is_above = float(row["score"]) > float(row["threshold"])
        assert row["decision"] == ("anomaly" if is_above else "normal")
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/mimimi-pump@champion")
    waveforms = [(read_clip(clip, 16000) / 32768).tolist() for clip in clips]
    frame = pd.DataFrame({"machine_id": ["id_04"] * 3, "waveform": waveforms})
    found = model.predict(frame)["score"].to_numpy()
    np.testing.assert_allclose(found, [float(row["score"]) for row in rows], atol=1e-5)


def test_repeating_the_command_changes_nothing(
    finished: tuple[dict[str, Any], str], out: Path, embedded: Path
) -> None:
    summary, _ = finished
    again, _ = search("--space", "spaces/smoke.yaml", "--data", embedded, "--out", out)
    assert again == summary


def test_a_champion_is_replaced_only_by_a_better_candidate(
    finished: tuple[dict[str, Any], str], out: Path, embedded: Path
) -> None:
    first, _ = finished
    args = ("--space", "spaces/smoke.yaml", "--data", embedded, "--out", out)
    second, _ = search(*args, "--machine-types", "fan", "--seed", 1)
    after = second["machine_types"]["fan"]
    assert after["champion_version"] == (2 if after["promoted"] else 1)
    client = MlflowClient(first["tracking_uri"])
    tags = client.get_model_version("mimimi-fan", "2").tags
    assert tags["decision"].startswith("promoted" if after["promoted"] else "kept")
    assert "on the same" in tags["decision"]
    assert tags["against"] == "version 1"
    is_better, is_no_worse = (float(tags[name]) <= 0.05 for name in ("p_value", "p_value_no_worse"))
    if after["promoted"]:
        assert is_better or (is_no_worse and "times as cheap" in tags["decision"])
    else:
        assert not is_better
    runs = client.search_runs([client.get_experiment_by_name(second["study"]).experiment_id])
    parent = next(run for run in runs if run.info.run_name == "fan")
    names = ("decision", "against", "difference", "p_value")
    assert {name: parent.data.tags[name] for name in names} == {name: tags[name] for name in names}

    shown = command(
        "search.promote", "--machine-type", "fan", "--tracking-uri", first["tracking_uri"]
    ).stdout.splitlines()
    assert len(shown) == 3
    marked = next(line for line in shown if line.startswith("*"))
    assert marked.split()[1] == str(after["champion_version"])


def test_dry_run_stops_before_any_work(tmp_path: Path, embedded: Path) -> None:
    args = ("--space", "spaces/complex.yaml", "--data", embedded, "--out", tmp_path, "--dry-run")
    said = command("search.run", *args).stdout
    assert "network.attention_expansion" in said
    assert "when network.attention is True" in said
    assert said.count("parameters, ") == 3
    assert "40 trials of at most 30 epochs" in said
    assert list(tmp_path.iterdir()) == []


def test_one_training_without_a_search(tmp_path: Path, embedded: Path) -> None:
    small = ("--epochs", "1", "--params", "network.channels=4")
    args = ("--machine-type", "fan", "--data", embedded, "--out", tmp_path, *small)
    said = command("mimimi_core.train", *args).stdout
    assert sum(line.startswith("id_06 ") for line in said.splitlines()) == 1
    clip = next((embedded / "fan" / "test").glob("*_id_06_*"))
    scored = command(
        "search.score", "--machine-type", "fan", "--machine-id", "id_06",
        "--model", tmp_path / "fan", clip,
    )  # fmt: skip
    assert len(scored.stdout.splitlines()) == 2


def test_real_clips_of_four_types(tmp_path: Path) -> None:
    summary, said = search(
        "--space", "spaces/smoke.yaml", "--data", real_clips() / "dcase2020-mini",
        "--out", tmp_path, "--trials", "1",
    )  # fmt: skip
    assert set(summary["machine_types"]) == {"fan", "pump", "slider", "valve"}
    for outcome in summary["machine_types"].values():
        assert outcome["promoted"] is True
        low, high = outcome["test_auc_ci"]
        assert high - low > 0.3  # so few clips say little, and the interval says so
    assert "fan: no val AUC for id_02, id_04" in said
    clips = sorted((real_clips() / "dcase2020-mini" / "pump" / "test").glob("*_id_04_*"))[:2]
    scored = command(
        "search.score", "--machine-type", "pump", "--machine-id", "id_04",
        "--tracking-uri", summary["tracking_uri"], *clips,
    )  # fmt: skip
    assert len(scored.stdout.splitlines()) == 3


TABLE = """
study: {trials: 3, epochs: 1}
sampler: {name: grid}
scheduler: {name: none}
confirmation: {top: 3, seeds: 2, test: all, ensemble: 2}
parameters:
  frontend.kind: {kind: fixed, value: logmel}
  network.kind: {kind: categorical, choices: [mahalanobis, gmade, mobilenetv2]}
  augment.mixing: {kind: fixed, value: true, when: {network.kind: mobilenetv2}}
  augment.mixing_p: {kind: fixed, value: 1.0, when: {augment.mixing: true}}
  train.lr: {kind: fixed, value: 0.001}
"""


def test_systems_are_set_side_by_side_beside_published_ones(out: Path, embedded: Path) -> None:
    space = out / "table.yaml"
    space.write_text(TABLE)
    options = ["--space", space, "--data", embedded, "--out", out, "--study", "table"]
    summary, said = search(*options, "--machine-types", "fan")
    assert summary["machine_types"]["fan"]["complete"] == 3
    assert "fan: 3 finalists meet the test clips" in said
    printed = command("search.report", "--study", "table", "--out", out).stdout
    for system in ("Giri et al., log-mel, MobileNetV2", "group MADE", "Giri et al., ensemble"):
        assert f"| {system}" in printed
    with (out / "table" / "report" / "systems.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if (row["source"], row["clips"]) == ("this study", "test")]
    assert len(ours) == 4  # three systems, one ensemble
    for row in ours:
        assert float(row["auc_low"]) <= float(row["auc"]) <= float(row["auc_high"])
        assert row["n_seeds"] == "2"
    client = MlflowClient(summary["tracking_uri"])
    experiment = client.get_experiment_by_name("table")
    assert experiment is not None
    (parent,) = client.search_runs(
        [experiment.experiment_id], "tags.mlflow.runName = 'fan' and attributes.status = 'FINISHED'"
    )
    stored = [file.path for file in client.list_artifacts(parent.info.run_id, "report")]
    assert {f"report/systems.{kind}" for kind in ("png", "md", "csv")} <= set(stored)

    settings = json.loads((out / "table" / "models" / "fan" / "detector.json").read_text())
    assert len(settings["members"]) == 2  # the two best finalists judge together
    clip = next((embedded / "fan" / "test").glob("anomaly_id_02_*.wav"))
    champion = ["--machine-type", "fan", "--machine-id", "id_02"]
    model = ["--model", out / "table" / "models" / "fan"]
    (row,) = csv.DictReader(command("search.score", *champion, *model, clip).stdout.splitlines())
    assert row["decision"] in ("normal", "anomaly")

    again, said = search(*options, "--machine-types", "fan")
    assert again == summary
    assert "meet the test clips" not in said
