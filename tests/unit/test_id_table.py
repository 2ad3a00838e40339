"""The table a person reads, and the CSV behind it."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mimimi_core.analysis import Analysis, Decisions, IdAnalysis
from mimimi_core.id_table import table, write_csv
from mimimi_core.metrics import AucReport, IdAuc
from mimimi_core.scoring import Threshold


def _of_id(name: str, n_normal: int, n_anomaly: int, auc: float | None) -> IdAuc:
    known = auc is not None
    return IdAuc(
        machine_id=name,
        auc=auc,
        pauc=0.625 if known else None,
        ci=(auc - 0.1, auc + 0.1) if known else None,
        n_normal=n_normal,
        n_anomaly=n_anomaly,
    )


@pytest.fixture
def analysis() -> Analysis:
    """id_02 lacks anomalies, id_04 normals and a threshold; the decisions of id_06 are poor."""
    ids = (
        _of_id("id_00", 10, 5, 0.9),
        _of_id("id_02", 8, 0, None),
        _of_id("id_04", 0, 3, None),
        _of_id("id_06", 5, 5, 0.5),
    )
    level = Threshold(value=1.23456, false_alarm_rate=0.1, n_normals=12)
    decisions = (
        Decisions(true_positives=4, false_positives=1, true_negatives=9, false_negatives=1),
        Decisions(true_positives=0, false_positives=0, true_negatives=8, false_negatives=0),
        None,
        Decisions(true_positives=0, false_positives=0, true_negatives=5, false_negatives=5),
    )
    return Analysis(
        report=AucReport(auc=0.7, pauc=0.625, ci=(0.6, 0.8), worst_auc=0.5, per_id=ids),
        per_id=tuple(
            IdAnalysis(auc=auc, threshold=found and level, decisions=found, val_youden_j=0.75)
            for auc, found in zip(ids, decisions, strict=True)
        ),
        overall=Decisions(
            true_positives=4, false_positives=1, true_negatives=22, false_negatives=6
        ),
        id_confusion=np.diag([10, 8, 0, 4]) + np.eye(4, k=-1, dtype=int) * [[0], [0], [0], [1]],
    )


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    return {row["machine_id"]: row for row in csv.DictReader(path.read_text().splitlines())}


def squeezed(lines: list[str]) -> list[str]:
    return [" ".join(line.split()) for line in lines]


def test_a_row_for_each_id_the_mean_and_all_decisions(analysis: Analysis) -> None:
    lines = squeezed(table(analysis))
    assert lines[2:6] == [
        "id_00 10 + 5 0.900 [0.800, 1.000] 0.625 1.235 (12) 0.80 0.80 0.80 1 of 10 (10%)",
        "id_02 8 + 0 - - 1.235 (12) - - - 0 of 8 (0%)",
        "id_04 0 + 3 - - - - - - -",
        "id_06 5 + 5 0.500 [0.400, 0.600] 0.625 1.235 (12) - 0.00 0.00 0 of 5 (0%)",
    ]
    assert lines[7:9] == [
        "mean 0.700 [0.600, 0.800] 0.625",
        "all 23 + 10 0.80 0.40 0.53 1 of 23 (4%)",
    ]


def test_columns_are_aligned_and_lines_fit_a_screen(analysis: Analysis) -> None:
    lines = table(analysis)
    for title, cell in (("pAUC", "0.625"), ("threshold", "1.235"), ("false alarms", "1 of 10")):
        assert lines[0].index(title) == lines[2].index(cell)
    assert lines[1] == lines[6] == "-" * max(map(len, lines[:9]))
    assert max(map(len, lines)) <= 120


def test_best_worst_and_range_are_named(analysis: Analysis) -> None:
    lines = table(analysis)
    assert "AUC over ids: best 0.900 (id_00), mean 0.700, worst 0.500 (id_06), range 0.400" in lines
    assert "normal clips whose id is named right: 22 of 23" in lines


def test_empty_cells_have_a_reason(analysis: Analysis) -> None:
    lines = table(analysis)
    assert "id_04: no AUC, left out of the mean: no normal clip in the test" in lines
    assert "id_02: no AUC, left out of the mean: no anomalous clip in the test" in lines
    assert (
        "id_04: no threshold, no decisions: fewer than two held-out normal clips with different "
        "scores" in lines
    )


def test_nothing_to_tell_is_told(tmp_path: Path) -> None:
    ids = (_of_id("id_00", 0, 0, None), _of_id("id_02", 0, 0, None))
    nothing = Analysis(
        report=AucReport(auc=None, pauc=None, ci=None, worst_auc=None, per_id=ids),
        per_id=tuple(
            IdAnalysis(auc=auc, threshold=None, decisions=None, val_youden_j=None) for auc in ids
        ),
        overall=None,
        id_confusion=np.zeros((2, 2), int),
    )
    lines = table(nothing)
    assert squeezed(lines)[2] == "id_00 0 + 0 - - - - - - -"
    assert squeezed(lines)[5:7] == ["mean - -", "all - - - - -"]
    assert not any("best" in line or "named right" in line for line in lines)
    assert "id_00, id_02: no AUC, left out of the mean: no normal clip in the test" in lines
    write_csv(nothing, tmp_path / "per_id.csv")
    rows = rows_of(tmp_path / "per_id.csv")
    found = {value for row in rows.values() for value in row.values()}
    assert found == {"id_00", "id_02", "mean", "all", "0", ""}


def test_the_csv_has_the_same_figures_in_full(analysis: Analysis, tmp_path: Path) -> None:
    write_csv(analysis, tmp_path / "new" / "per_id.csv")
    rows = rows_of(tmp_path / "new" / "per_id.csv")
    assert list(rows) == ["id_00", "id_02", "id_04", "id_06", "mean", "all"]
    first = rows["id_00"]
    assert (first["n_normal"], first["n_anomaly"], first["threshold"]) == ("10", "5", "1.23456")
    assert first["threshold_n_normals"] == "12"
    ranking = [first[name] for name in ("auc", "auc_low", "auc_high", "pauc")]
    assert ranking == ["0.9", "0.8", "1.0", "0.625"]
    counts = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    assert [first[name] for name in counts] == ["4", "1", "9", "1"]
    assert [rows["all"][name] for name in counts] == ["4", "1", "22", "6"]
    assert float(rows["all"]["precision"]) == pytest.approx(0.8)
    assert float(rows["all"]["recall"]) == pytest.approx(0.4)
    assert rows["id_06"]["recall"] == rows["id_06"]["f1"] == "0.0"
    assert rows["id_06"]["precision"] == rows["id_02"]["recall"] == rows["id_02"]["auc"] == ""
    assert rows["id_04"]["threshold"] == rows["id_04"]["false_alarm_rate"] == ""
    assert rows["mean"]["auc"] == "0.7"
    assert first["val_youden_j"] == "0.75"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["per_id.csv"]


def test_the_lines_of_the_csv_end_as_a_shell_expects(analysis: Analysis, tmp_path: Path) -> None:
    write_csv(analysis, tmp_path / "per_id.csv")
    assert b"\r" not in (tmp_path / "per_id.csv").read_bytes()
