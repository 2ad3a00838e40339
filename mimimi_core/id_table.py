"""An analysis as a table per machine id: lines for people, CSV for programs."""

import csv
from pathlib import Path

from mimimi_core.analysis import Analysis, Decisions
from mimimi_core.metrics import AucReport, IdAuc, shown

_HEADER = (
    "machine id", "clips", "AUC [95 %]", "pAUC [95 %]", "threshold", "precision", "recall", "F1",
    "false alarms",
)  # fmt: skip
_COUNTS = ("true_positives", "false_positives", "true_negatives", "false_negatives")
_SHARES = ("precision", "recall", "f1", "false_alarm_rate")
_COLUMNS = (
    "machine_id", "n_normal", "n_anomaly", "auc", "auc_low", "auc_high",
    "pauc", "pauc_low", "pauc_high", "threshold", "threshold_n_normals",
    *_COUNTS, *_SHARES, "val_youden_j",
)  # fmt: skip
_NONE = "-"


def table(analysis: Analysis) -> list[str]:
    """A row per machine id, the mean over ids, the decisions on all clips, and what they mean."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for x in analysis.per_id:
        level = f"{x.threshold.value:.4g} ({x.threshold.n_normals})" if x.threshold else _NONE
        clips = f"{x.auc.n_normal} + {x.auc.n_anomaly}"
        rows.append((x.auc.machine_id, clips, *_ranking(x.auc), level, *_rates(x.decisions)))
    rows.append(("mean", "", *_ranking(analysis.report), "", "", "", "", ""))
    every = analysis.overall
    clips = f"{every.n_normal} + {every.n_anomaly}" if every else _NONE
    rows.append(("all", clips, "", "", "", *_rates(every)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    lines.insert(-2, lines[1])
    return [*lines, "", *_over_ids(analysis), *_missing(analysis), *_legend(analysis)]


def write_csv(analysis: Analysis, path: Path) -> None:
    """The same rows with the counts behind them; a cell is empty where there is no figure."""
    rows: list[dict[str, object]] = []
    for x in analysis.per_id:
        row = _cells(x.auc, x.decisions) | {"val_youden_j": x.val_youden_j}
        row |= {name: getattr(x.auc, name) for name in ("machine_id", "n_normal", "n_anomaly")}
        if x.threshold:
            row |= {"threshold": x.threshold.value, "threshold_n_normals": x.threshold.n_normals}
        rows.append(row)
    rows.append({"machine_id": "mean"} | _cells(analysis.report, None))
    rows.append({"machine_id": "all"} | _cells(None, analysis.overall))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def _cells(auc: AucReport | IdAuc | None, decisions: Decisions | None) -> dict[str, object]:
    """The columns that can be filled."""
    cells: dict[str, object] = {}
    if auc and auc.ci:
        cells |= {"auc": auc.auc, "auc_low": auc.ci[0], "auc_high": auc.ci[1], "pauc": auc.pauc}
    if auc and auc.pauc_ci:
        cells |= {"pauc_low": auc.pauc_ci[0], "pauc_high": auc.pauc_ci[1]}
    if decisions:
        names = ("n_normal", "n_anomaly", *_COUNTS, *_SHARES)
        cells |= {name: getattr(decisions, name) for name in names}
    return cells


def _ranking(x: AucReport | IdAuc) -> tuple[str, str]:
    """AUC and pAUC."""
    return shown(x.auc, x.ci), shown(x.pauc, x.pauc_ci)


def _rates(x: Decisions | None) -> list[str]:
    if x is None:
        return [_NONE] * 4
    shares = (x.precision, x.recall, x.f1)
    alarms = _NONE
    if x.false_alarm_rate is not None:
        alarms = f"{x.false_positives} of {x.n_normal} ({x.false_alarm_rate:.0%})"
    return [*(_NONE if share is None else f"{share:.2f}" for share in shares), alarms]


def _over_ids(analysis: Analysis) -> list[str]:
    """How far the ids lie apart, and how well they are told apart."""
    lines = []
    aucs = analysis.report.aucs
    if len(aucs) > 1:
        best, worst = max(aucs, key=aucs.__getitem__), min(aucs, key=aucs.__getitem__)
        lines.append(
            f"AUC over ids: best {aucs[best]:.3f} ({best}), mean {analysis.report.auc:.3f}, "
            f"worst {aucs[worst]:.3f} ({worst}), range {aucs[best] - aucs[worst]:.3f}"
        )
    counts = analysis.id_confusion
    if counts is not None and counts.sum():
        lines.append(f"normal clips whose id is named right: {counts.trace()} of {counts.sum()}")
    return lines


def _missing(analysis: Analysis) -> list[str]:
    """Why some cells are empty."""
    ids = [x.auc for x in analysis.per_id if x.auc.is_trained]
    reasons = {
        "no AUC, left out of the mean, and no threshold: no clip of it trained the model": [
            x.auc.machine_id for x in analysis.per_id if not x.auc.is_trained
        ],
        "no AUC, left out of the mean: no normal clip in the test": [
            x.machine_id for x in ids if not x.n_normal
        ],
        "no AUC, left out of the mean: no anomalous clip in the test": [
            x.machine_id for x in ids if x.n_normal and not x.n_anomaly
        ],
        "no threshold, no decisions: fewer than two held-out normal clips with different scores": [
            x.auc.machine_id for x in analysis.per_id if x.threshold is None and x.auc.is_trained
        ],
    }
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items() if names]


def _legend(analysis: Analysis) -> list[str]:
    lines = [
        "clips: normal + anomalous; AUC: how surely an anomalous one scores above a normal one, "
        "0.5 being chance",
        "pAUC: the same at few false alarms; in brackets 95 % intervals",
    ]
    rates = {x.threshold.false_alarm_rate for x in analysis.per_id if x.threshold}
    if rates:
        expected = " or ".join(f"{rate:.0%}" for rate in sorted(rates))
        lines += [
            f"threshold: {expected} of normal clips are expected above it, by the held-out normal "
            "clips in brackets",
            "precision: share of alarms that were right; recall: share of anomalous clips that "
            "raised one; F1: of both",
        ]
    return lines
