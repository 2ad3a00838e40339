"""The paper's figures of a search's winner: of its typical clips, and only what there is."""

import logging
import pickle

import numpy as np
import pytest

from mimimi_core.pack import Pack
from mimimi_core.scoring import ClipScores
from mimimi_core.winner_figures import typical_rainbowgrams, winner_figures
from tests.model_fixtures import make_detector, resplit, tone_pack
from tests.unit.test_tsne import IDS, detector_of


def scores(pack: Pack) -> ClipScores:
    """Test scores that rise with the clip's number, whatever it sounds like."""
    clips = pack.select("test")
    nll = np.repeat(clips[:, None] / 100, len(pack.machine_ids), axis=1)
    return ClipScores(clips=clips, id_index=pack.id_index[clips], nll=nll)


@pytest.fixture
def pack() -> Pack:
    return tone_pack(n_other=3)


def test_both_figures_can_be_sent_between_processes(pack: Pack) -> None:
    figures = winner_figures(make_detector(machine_ids=IDS), pack, scores(pack))
    assert list(pickle.loads(pickle.dumps(figures))) == ["rainbowgrams", "tsne"]


def test_rows_are_ids_with_the_median_clip_of_either_label(pack: Pack) -> None:
    titles = [axes.get_title() for axes in typical_rainbowgrams(pack, scores(pack)).axes[:4]]
    expected = []
    for index in (0, 1):
        for label, name in ((0, "normal"), (1, "anomalous")):
            mine = pack.select("test", label)
            median = mine[pack.id_index[mine] == index][1]
            expected.append(f"{IDS[index]} {name}, score {median / 100:.2f}\n{pack.names[median]}")
    assert titles == expected


def test_a_panel_shows_its_own_clip(pack: Pack) -> None:
    figure = typical_rainbowgrams(pack, scores(pack))
    rows = [axes.images[0].get_array().sum(axis=(1, 2)).argmax() for axes in figure.axes[:4]]
    assert np.diff(rows).min() > 0  # tones of 1000, 1700, 2500 and 3200 Hz


def test_an_id_without_a_test_anomaly_says_so(pack: Pack) -> None:
    gone = (pack.id_index == 1) & (pack.labels == 1) & (pack.splits == "test")
    pack = resplit(pack, gone, "val")
    titles = [axes.get_title() for axes in typical_rainbowgrams(pack, scores(pack)).axes[:4]]
    assert titles[3] == "id_02: no anomalous clip"


def test_what_there_is_not_is_left_out_and_said(
    pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(winner_figures(detector_of("gmade"), pack, scores(pack))) == ["rainbowgrams"]
    assert "no t-SNE figure" in caplog.text
    assert "'gmade'" in caplog.text
    untested = resplit(pack, pack.splits == "test", "train")
    few = winner_figures(make_detector(machine_ids=IDS), untested, scores(untested))
    assert few == {}
