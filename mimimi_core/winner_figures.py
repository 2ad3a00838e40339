"""The paper's figures of one detector: its clips' embeddings, and clips that are typical to it."""

import logging

import numpy as np
from matplotlib.figure import Figure

from mimimi_core.detector import Detector
from mimimi_core.pack import Pack
from mimimi_core.rainbowgram import rainbowgram_figure
from mimimi_core.scoring import ClipScores
from mimimi_core.tsne import EmbeddingError, tsne_figure

logger = logging.getLogger(__name__)


def winner_figures(detector: Detector, pack: Pack, test_scores: ClipScores) -> dict[str, Figure]:
    """`rainbowgrams` (Fig. 1) and `tsne` (Fig. 4); a log line tells why one is left out.

    Args:
        detector: The winner of a search.
        pack: The clips it was trained and tested on.
        test_scores: Of its test clips, which this opens.
    """
    figures = {}
    if len(test_scores.clips):
        figures["rainbowgrams"] = typical_rainbowgrams(pack, test_scores)
    try:
        figures["tsne"] = tsne_figure(detector, pack)
    except EmbeddingError as error:
        logger.warning("%s: no t-SNE figure: %s", pack.machine_type, error)
    return figures


def typical_rainbowgrams(pack: Pack, found: ClipScores) -> Figure:
    """A row per machine id: its normal clip and its anomalous one with the median score."""
    panels: list[tuple[str, np.ndarray | None]] = []
    for index in np.unique(found.id_index):
        for label, name in ((0, "normal"), (1, "anomalous")):
            mine = np.flatnonzero((found.id_index == index) & (pack.labels[found.clips] == label))
            if not len(mine):
                panels.append((f"{pack.machine_ids[index]}: no {name} clip", None))
                continue
            median = mine[np.argsort(found.scores[mine], kind="stable")[len(mine) // 2]]
            clip = found.clips[median]
            score = f"score {found.scores[median]:.2f}"
            title = f"{pack.machine_ids[index]} {name}, {score}\n{pack.names[clip]}"
            start = pack.starts[clip]
            panels.append((title, pack.samples[start : start + pack.lengths[clip]]))
    return rainbowgram_figure(panels, pack.sample_rate, columns=2)
