"""Figures that judge one detector: ROC per id, score histograms, confusion of ids and of decisions.

Pure functions from arrays to a matplotlib `Figure`: no pyplot, so no global state and no display.
Readable in black and white: curves differ by dashes, histograms by fill, counts are written out.
Names are shown as they are: `parse_math=False`, for two dollars would make them a formula.
Legend: `n` clips, `K` machine ids.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from mimimi_core.analysis import Analysis, Decisions, analyse
from mimimi_core.evaluation import Evaluation
from mimimi_core.metrics import IdAuc
from mimimi_core.scoring import are_alike

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)))
_COLUMNS = 4  # panels side by side


def evaluation_figures(evaluation: Evaluation) -> dict[str, Figure]:
    """All figures of the test of an evaluation, by name."""
    found, labels, ids = evaluation.test_scores, evaluation.test_labels, evaluation.machine_ids
    analysis = analyse(evaluation)
    levels = {name: t.value if t else None for name, t in evaluation.thresholds.items()}
    figures = {
        "roc": roc_figure(found.scores, labels, found.id_index, evaluation.test.per_id),
        "scores": score_histograms(found.scores, labels, found.id_index, ids, levels),
        "decisions": decision_confusion(analysis),
    }
    if analysis.id_confusion is not None:
        figures["ids"] = id_confusion(analysis.id_confusion, ids)
    return figures


def roc_figure(
    scores: np.ndarray, labels: np.ndarray, id_index: np.ndarray, per_id: Sequence[IdAuc]
) -> Figure:
    """One ROC curve per machine id, with its AUC.

    Args:
        scores: `(n,)` anomaly scores.
        labels: `(n,)` 0 normal, 1 anomaly.
        id_index: `(n,)` into `per_id`.
        per_id: `K` AUCs of these scores.
    """
    figure = Figure(figsize=(5.5, 5.6 + 0.19 * len(per_id)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="chance")
    for index, x in enumerate(per_id):
        if x.auc is None or x.ci is None:
            axes.plot([], [], " ", label=f"{x.machine_id}  no AUC: {x.clips}")
            continue
        mine = id_index == index
        false_alarms, hits, _ = roc_curve(labels[mine], scores[mine])
        axes.plot(
            false_alarms,
            hits,
            linestyle=_DASHES[index % len(_DASHES)],
            linewidth=1.8,
            label=f"{x.machine_id}  AUC {x.auc:.3f} [{x.ci[0]:.3f}, {x.ci[1]:.3f}]: {x.clips}",
        )
    axes.set(xlabel="false alarm rate", ylabel="hit rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")
    legend = figure.legend(loc="outside lower center", handlelength=3.5, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def score_histograms(
    scores: np.ndarray,
    labels: np.ndarray,
    id_index: np.ndarray,
    machine_ids: Sequence[str],
    thresholds: Mapping[str, float | None],
) -> Figure:
    """Scores of normal and anomalous clips per machine id, and where the threshold cuts them.

    Args:
        scores: `(n,)` anomaly scores.
        labels: `(n,)` 0 normal, 1 anomaly.
        id_index: `(n,)` into `machine_ids`.
        machine_ids: `K` names.
        thresholds: By name; None or absent where an id has none.
    """
    columns = min(_COLUMNS, max(1, len(machine_ids)))
    rows = -(-max(1, len(machine_ids)) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, (axes, machine_id) in enumerate(zip(panels, machine_ids, strict=False)):
        mine = id_index == index
        _histogram(axes, scores[mine], labels[mine], thresholds.get(machine_id))
        title = f"{machine_id}: {_counts(labels[mine])}"
        axes.set_title(title, fontsize=9, parse_math=False)
    for axes in panels[len(machine_ids) :]:
        axes.set_axis_off()
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles)
        )
    figure.supxlabel("anomaly score", fontsize=10)
    figure.supylabel("clips", fontsize=10)
    return figure


def id_confusion(counts: np.ndarray, machine_ids: Sequence[str]) -> Figure:
    """Which id the network takes each normal clip for; an id it confuses cannot be judged well.

    Args:
        counts: int `(K, K)` of clips, a row per true id and a column per id by the network.
        machine_ids: `K` names.
    """
    n_ids = len(machine_ids)
    side = 2.0 + 0.75 * n_ids
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    _matrix(axes, counts)
    names = [
        name if total else f"{name}\n(none counted)"
        for name, total in zip(machine_ids, counts.sum(axis=1), strict=True)
    ]
    rotation = 45 if n_ids > 6 else 0
    axes.set_xticks(range(n_ids), machine_ids, rotation=rotation, parse_math=False)
    axes.set_yticks(range(n_ids), names, parse_math=False)
    n_right, n_clips = int(counts.trace()), int(counts.sum())
    right = f", {n_right / n_clips:.0%} right" if n_clips else ""
    axes.set(xlabel="id by the network", ylabel="true id", title=f"{n_clips} normal clips{right}")
    return figure


def decision_confusion(analysis: Analysis) -> Figure:
    """Normal and anomalous clips by what they were called, of all ids and of each."""
    panels: dict[str, Decisions | None] = {"all": analysis.overall}
    panels |= {x.auc.machine_id: x.decisions for x in analysis.per_id}
    columns = min(_COLUMNS + 1, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.1 * columns + 0.6, 2.5 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    called = ["normal", "anomaly"]
    for axes, (name, decisions) in zip(grid.ravel(), panels.items(), strict=False):
        axes.set_title(name, fontsize=10, parse_math=False)
        axes.set_xticks([0, 1], called)
        axes.set_yticks([])
        if decisions is not None:
            _matrix(axes, decisions.matrix)
        else:
            axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), aspect="equal")
            axes.text(0.5, 0.5, "no threshold", ha="center", va="center")
    for axes in grid[:, 0]:
        axes.set_yticks([0, 1], called)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("called", fontsize=10)
    figure.supylabel("truth", fontsize=10)
    return figure


def _matrix(axes: Axes, counts: np.ndarray) -> None:
    """Counts written into squares that are as dark as their share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color)


def _histogram(axes: Axes, scores: np.ndarray, labels: np.ndarray, threshold: float | None) -> None:
    # rounding leaves no room for 15 bins: around one of the scores there is
    spread = scores[:1] if are_alike(scores) else scores
    edges = np.histogram_bin_edges(spread, bins=15).tolist()
    if (labels == 0).any():
        axes.hist(scores[labels == 0], edges, color="0.75", edgecolor="0.5", label="normal")
    if (labels == 1).any():
        axes.hist(
            scores[labels == 1],
            edges,
            histtype="step",
            hatch="////",
            color="tab:red",
            linewidth=1.4,
            label="anomaly",
        )
    if threshold is None:
        axes.text(0.97, 0.95, "no threshold", ha="right", va="top", transform=axes.transAxes)
    else:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.4, label="threshold")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _counts(labels: np.ndarray) -> str:
    n_anomalies = int((labels == 1).sum())
    return f"{len(labels) - n_anomalies} normal, {n_anomalies} anomalous"
