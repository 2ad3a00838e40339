"""Figures are made of what they are given, and say what they cannot show."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from mimimi_core.plots import id_confusion, roc_figure, score_histograms

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


def saved(figure: Figure, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    figure.savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_roc_names_the_auc_of_each_id_and_the_id_without(clips, tmp_path) -> None:
    scores, labels, id_index = clips
    figure = roc_figure(scores, labels, id_index, IDS)
    for index in (0, 1, 3):
        mine = id_index == index
        auc = roc_auc_score(labels[mine], scores[mine])
        assert f"{IDS[index]}  AUC {auc:.3f}" in texts(figure)
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
    logits = np.eye(4)[[0, 0, 1, 3, 3]]
    figure = id_confusion(logits, np.array([0, 1, 1, 3, 3]), IDS)
    cells = np.array([int(text.get_text()) for text in figure.axes[0].texts]).reshape(4, 4)
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[1, 0] = expected[1, 1] = 1
    expected[3, 3] = 2
    np.testing.assert_array_equal(cells, expected)
    assert "5 normal clips, 80% right" in texts(figure)
    assert "id_04\n(no clips)" in texts(figure)
    saved(figure, tmp_path)


def test_figures_of_no_clips_are_drawn(tmp_path) -> None:
    none, no_ids = np.zeros(0), np.zeros(0, dtype=np.int64)
    for figure in (
        roc_figure(none, no_ids, no_ids, IDS),
        score_histograms(none, no_ids, no_ids, IDS, {}),
        id_confusion(np.zeros((0, 4)), no_ids, IDS),
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
