"""Figures are made of what they are given, and say what they cannot show."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from mimimi_core.analysis import Analysis, Decisions, IdAnalysis, analyse
from mimimi_core.evaluation import build_detector, evaluate
from mimimi_core.metrics import AucReport, IdAuc, auc_report
from mimimi_core.plots import (
    decision_confusion,
    evaluation_figures,
    id_confusion,
    roc_figure,
    score_histograms,
)
from mimimi_core.training import Training
from tests.model_fixtures import CPU, tiny_config, tone_pack
from tests.system_fixtures import small_config

IDS = ("id_00", "id_02", "id_04", "id_06")


@pytest.fixture
def clips() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and ids of 4 x 24 clips; id_04 has no anomaly."""
    rng = np.random.default_rng(0)
    id_index = np.repeat(np.arange(4), 24)
    labels = np.tile([0, 1], 48)
    labels[id_index == 2] = 0
    scores = rng.normal(size=96) + labels * np.array([0.5, 1.0, 0.0, 3.0])[id_index]
    return scores, labels, id_index


def texts(figure: Figure) -> str:
    legends = [axes.get_legend() for axes in figure.axes] + figure.legends
    entries = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    drawn = [text.get_text() for axes in figure.axes for text in axes.texts]
    titles = [axes.get_title() for axes in figure.axes]
    ticks = [t.get_text() for axes in figure.axes for t in axes.get_yticklabels()]
    return "\n".join(entries + drawn + titles + ticks)


def cells(axes: Axes) -> list[int]:
    return [int(text.get_text()) for text in axes.texts]


def saved(figure: Figure, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    figure.savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_roc_names_the_auc_of_each_id_and_the_id_without(clips, tmp_path) -> None:
    scores, labels, id_index = clips
    figure = roc_figure(scores, labels, id_index, auc_report(*clips, IDS).per_id)
    for index in (0, 1, 3):
        mine = id_index == index
        auc = roc_auc_score(labels[mine], scores[mine])
        assert f"{IDS[index]}  AUC {auc:.3f} [" in texts(figure)
    assert "]: 12 normal, 12 anomalous" in texts(figure)
    assert "id_04  no AUC: 24 normal, 0 anomalous" in texts(figure)
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert len(curves) == 1 + 3  # chance
    assert len({line.get_linestyle() for line in curves[1:]}) == 3  # told apart without colour
    saved(figure, tmp_path)


def test_histograms_have_a_panel_per_id_with_every_clip_and_the_threshold(clips, tmp_path) -> None:
    figure = score_histograms(*clips, IDS, {"id_00": 0.7, "id_02": None, "id_06": 1.5})
    assert len(figure.axes) == 4
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.7
    assert not figure.axes[1].lines
    assert texts(figure).count("no threshold") == 2  # None and absent
    assert "id_04: 24 normal, 0 anomalous" in texts(figure)
    assert sum(bar.get_height() for bar in figure.axes[2].patches) == 24
    saved(figure, tmp_path)


def test_confusion_counts_clips_and_marks_an_id_without_any(tmp_path) -> None:
    counts = np.zeros((4, 4), int)
    counts[0, 0] = counts[1, 0] = counts[1, 1] = 1
    counts[3, 3] = 2
    figure = id_confusion(counts, IDS)
    np.testing.assert_array_equal(cells(figure.axes[0]), counts.ravel())
    assert "5 normal clips, 80% right" in texts(figure)
    assert "id_04\n(none counted)" in texts(figure)
    saved(figure, tmp_path)


def analysis_of(decisions: dict[str, Decisions | None], overall: Decisions | None) -> Analysis:
    """An analysis of which nothing but the decisions matters."""
    none = {"auc": None, "pauc": None, "ci": None}
    per_id = tuple(
        IdAnalysis(
            auc=IdAuc(machine_id=name, n_normal=0, n_anomaly=0, **none),
            threshold=None,
            decisions=found,
            val_youden_j=None,
        )
        for name, found in decisions.items()
    )
    report = AucReport(**none, worst_auc=None, per_id=tuple(x.auc for x in per_id))
    return Analysis(report=report, per_id=per_id, overall=overall, id_confusion=None)


def test_decisions_are_shown_of_all_clips_and_of_each_id(tmp_path) -> None:
    one = Decisions(true_positives=4, false_positives=3, true_negatives=2, false_negatives=1)
    every = Decisions(true_positives=8, false_positives=6, true_negatives=4, false_negatives=2)
    figure = decision_confusion(analysis_of({"id_00": one, "id_02": None, "id_04": one}, every))
    assert [axes.get_title() for axes in figure.axes] == ["all", "id_00", "id_02", "id_04"]
    assert cells(figure.axes[0]) == [4, 6, 2, 8]  # normal above, calm left
    assert cells(figure.axes[1]) == cells(figure.axes[3]) == [2, 3, 1, 4]
    assert [text.get_text() for text in figure.axes[2].texts] == ["no threshold"]
    saved(figure, tmp_path)


def test_dollars_in_a_name_are_no_formula(tmp_path) -> None:
    ids = ["id_$a^$", "id_b"]
    rng = np.random.default_rng(0)
    index, labels, scores = np.repeat([0, 1], 20), np.tile([0, 1], 20), rng.normal(size=40)
    one = Decisions(true_positives=4, false_positives=0, true_negatives=2, false_negatives=0)
    for figure in (
        roc_figure(scores, labels, index, auc_report(scores, labels, index, ids).per_id),
        score_histograms(scores, labels, index, ids, {}),
        id_confusion(np.eye(2, dtype=int), ids),
        decision_confusion(analysis_of(dict.fromkeys(ids, one), one)),
    ):
        assert "id_$a^$" in texts(figure)
        saved(figure, tmp_path)


def test_decisions_of_many_ids_fit(tmp_path) -> None:
    one = Decisions(true_positives=4, false_positives=0, true_negatives=2, false_negatives=0)
    ids = [f"id_{2 * i:02d}" for i in range(7)]
    figure = decision_confusion(analysis_of(dict.fromkeys(ids, one), one))
    assert len(figure.axes) == 10  # two rows of five, the last two empty
    assert sum(bool(axes.texts) for axes in figure.axes) == 8
    saved(figure, tmp_path)


def test_an_evaluation_has_four_figures(tmp_path) -> None:
    training = Training(tiny_config(), tone_pack(n_other=5), CPU)
    training.run_epoch()
    evaluation = evaluate(build_detector([training]), training.pack)
    figures = evaluation_figures(evaluation)
    assert sorted(figures) == ["decisions", "ids", "roc", "scores"]
    analysis = analyse(evaluation)
    assert analysis.overall is not None
    assert analysis.id_confusion is not None
    assert cells(figures["decisions"].axes[0]) == analysis.overall.matrix.ravel().tolist()
    assert cells(figures["ids"].axes[0]) == analysis.id_confusion.ravel().tolist()
    assert "id_02: 5 normal, 5 anomalous" in texts(figures["scores"])


@pytest.mark.parametrize("systems", [["autoencoder"], ["autoencoder", "gmade"]])
def test_systems_that_name_no_ids_have_no_figure_of_them(systems: list[str]) -> None:
    """Together they score a clip differently under each id: by the scales of the ids."""
    pack = tone_pack(n_other=5)
    trainings = [Training(small_config(system), pack, CPU) for system in systems]
    assert sorted(evaluation_figures(evaluate(build_detector(trainings), pack))) == [
        "decisions",
        "roc",
        "scores",
    ]


def test_scores_that_differ_by_rounding_alone_are_one_bar() -> None:
    scores = np.log(6) * np.array([1, 1 - 2e-16, 1, 1])  # of a dead microphone, say
    labels = np.array([0, 1, 0, 1])
    axes = score_histograms(scores, labels, np.zeros(4, int), ["id_00"], {}).axes[0]
    bars, anomalies = axes.containers[0], axes.patches[-1]
    assert sorted(bar.get_height() for bar in bars)[-2:] == [0, 2]
    assert anomalies.get_xy()[:, 1].max() == 2


def test_figures_of_no_clips_are_drawn(tmp_path) -> None:
    none, no_ids = np.zeros(0), np.zeros(0, dtype=np.int64)
    for figure in (
        roc_figure(none, no_ids, no_ids, auc_report(none, no_ids, no_ids, IDS).per_id),
        score_histograms(none, no_ids, no_ids, IDS, {}),
        id_confusion(np.zeros((4, 4), int), IDS),
    ):
        saved(figure, tmp_path)


def test_many_ids_fit(tmp_path) -> None:
    rng = np.random.default_rng(1)
    ids = [f"id_{2 * i:02d}" for i in range(7)]
    id_index = np.repeat(np.arange(7), 30)
    labels = rng.integers(0, 2, 210)
    figure = score_histograms(rng.normal(size=210), labels, id_index, ids, dict.fromkeys(ids, 0.5))
    assert len(figure.axes) == 8  # two rows of four, the last panel empty
    saved(figure, tmp_path)
