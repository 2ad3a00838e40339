"""Maps the embeddings of clips to a plane by t-SNE: do anomalies lie apart (paper, Fig. 4)?

    python -m mimimi_core.tsne --model FOLDER --data DIR --machine-type fan --out fan.png

FOLDER is what `mimimi_core.train` or a search saved. The clips are packed into `runs/packs`, where
a search that was run from the same place has left them.

An embedding is what the last layer of a classifier gets, averaged over the map and over the windows
of a clip, as scores are. Legend: `n` clips, `D` channels before the last layer.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mimimi_core.audio import AudioError
from mimimi_core.clips import ManifestError
from mimimi_core.crops import window_offsets
from mimimi_core.detector import Detector, DetectorError
from mimimi_core.evaluate import open_data
from mimimi_core.figure_file import FigureFileError, write_figure
from mimimi_core.pack import Pack, PackError
from mimimi_core.scoring import are_alike
from mimimi_core.systems import Classifier

# The paper's. Its 200 iterations are fewer than scikit-learn allows: 1000 are run.
PERPLEXITY, LEARNING_RATE = 30.0, 1000.0
FULL = 459  # clips on the paper's picture of the fan; of fewer, its rate throws some far away
FEWEST = 10  # clips of a machine id: a perplexity of 3
_COLUMNS = 4


class EmbeddingError(ValueError):
    """There is nothing to map: the system has no embedding, or there are too few clips."""


def tsne_figure(detector: Detector, pack: Pack, machine_ids: Sequence[str] | None = None) -> Figure:
    """A panel per id with all its labelled clips, val and test, as in the paper.

    Args:
        detector: A classifier of these machines.
        pack: Clips of its machine type.
        machine_ids: Which; by default those of the pack with clips enough.

    Raises:
        EmbeddingError: The system classifies nothing, or an id has fewer than `FEWEST` clips.
        DetectorError: An id is unknown to the detector.
    """
    labelled = np.flatnonzero(np.isin(pack.splits, ("val", "test")))
    by_id = {
        machine_id: labelled[pack.id_index[labelled] == index]
        for index, machine_id in enumerate(pack.machine_ids)
    }
    if machine_ids is None:
        machine_ids = [name for name, clips in by_id.items() if len(clips) >= FEWEST]
    counts = {name: len(by_id.get(name, ())) for name in machine_ids or by_id}
    if not counts or min(counts.values()) < FEWEST:
        found = ", ".join(f"{n} of {name}" for name, n in counts.items())
        raise EmbeddingError(
            f"t-SNE needs at least {FEWEST} labelled clips of a machine id, there are {found}"
        )
    columns = min(_COLUMNS, len(counts))
    rows = -(-len(counts) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, machine_id in zip(panels, machine_ids, strict=False):
        clips = by_id[machine_id]
        perplexity, rate = settings(len(clips))
        places = map_to_plane(embed(detector, pack, clips))
        remark = ""
        if (perplexity, rate) != (PERPLEXITY, LEARNING_RATE):
            remark = f"perplexity {perplexity:.0f}, learning rate {rate:.0f}"
        _draw(axes, places, pack.labels[clips], machine_id, remark)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )
    label = f"all labelled clips of {pack.machine_type}, val and test"
    figure.supxlabel(label, fontsize=9, parse_math=False)
    return figure


def embed(detector: Detector, pack: Pack, clips: np.ndarray) -> np.ndarray:
    """Embeddings of clips of a pack, float64 `(n, D)`.

    Args:
        detector: A classifier; of several networks, the first is taken.
        pack: Holds the clips.
        clips: int64 `(n,)` indices into it, at least one.

    Raises:
        EmbeddingError: The system classifies nothing.
        DetectorError: A clip is of an id that the detector does not know.
    """
    network, config = detector.members[0].network, detector.members[0].config
    if not isinstance(network, Classifier):
        raise EmbeddingError(
            f"a system of network.kind {config.network.kind!r} tells no machine ids "
            "apart, so it has no embedding"
        )
    unknown = {pack.machine_ids[i] for i in pack.id_index[clips]} - set(detector.machine_ids)
    if unknown:
        raise DetectorError(
            f"machine ids {', '.join(sorted(unknown))} are unknown to this "
            f"{detector.machine_type} model; it knows {', '.join(detector.machine_ids)}"
        )
    pooled: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pooled.append(inputs[0].float().mean(dim=(2, 3)).cpu())

    hook = network.total_conv.register_forward_pre_hook(keep)
    try:
        detector.score_pack(pack, clips)  # runs the windows of all clips in order
    finally:
        hook.remove()
    windows = torch.cat(pooled).double().numpy()
    counts = np.array([len(window_offsets(int(n), config.frontend)) for n in pack.lengths[clips]])
    sums = np.add.reduceat(windows, np.cumsum(counts) - counts, axis=0)
    return np.asarray(sums / counts[:, None])


def settings(n_clips: int) -> tuple[float, float]:
    """Perplexity and learning rate: the paper's, or as near as so many clips allow.

    By the rule of van der Maaten's own implementation a clip needs three times as many neighbours;
    the rate goes with the clips, as in Belkina et al. (Nature Communications, 2019).
    """
    perplexity = min(PERPLEXITY, (n_clips - 1) / 3)
    return perplexity, LEARNING_RATE * min(1.0, n_clips / FULL)


def map_to_plane(embeddings: np.ndarray) -> np.ndarray:
    """Places `(n, 2)` of embeddings `(n, D)`; one place where these are all alike."""
    if are_alike(embeddings):  # scikit-learn would divide by their spread, and crash the process
        return np.zeros((len(embeddings), 2))
    from sklearn.manifold import TSNE  # half a second, which a start need not pay

    perplexity, rate = settings(len(embeddings))
    mapping = TSNE(perplexity=perplexity, learning_rate=rate, init="pca", random_state=0)
    return np.asarray(mapping.fit_transform(embeddings))


def _draw(axes: Axes, places: np.ndarray, labels: np.ndarray, title: str, remark: str) -> None:
    x, y = places.T
    is_normal, is_anomaly = labels == 0, labels == 1
    axes.scatter(
        x[is_normal], y[is_normal], s=22, facecolors="none", edgecolors="tab:blue", label="normal"
    )
    axes.scatter(
        x[is_anomaly],
        y[is_anomaly],
        s=22,
        marker="x",
        color="tab:red",
        linewidths=1.1,
        label="anomaly",
    )
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    counts = f"{(labels == 0).sum()} normal, {(labels == 1).sum()} anomalous"
    whole = f"{title}: {counts}" + (f"\n{remark}" if remark else "")
    axes.set_title(whole, fontsize=9, parse_math=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m mimimi_core.tsne", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a detector")
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--machine-type", required=True)
    parser.add_argument("--machine-id", help="by default all, a panel each")
    parser.add_argument("--out", type=Path, required=True, help="such as fan.png")
    args = parser.parse_args(argv)
    try:
        detector = Detector.load(args.model)
        if detector.machine_type != args.machine_type:
            raise DetectorError(
                f"{args.model} holds a {detector.machine_type} model, so --machine-type must be "
                f"{detector.machine_type!r}, got {args.machine_type!r}"
            )
        packs = Path("runs/packs")
        pack = open_data(args.data, args.machine_type, packs, detector.sample_rate)
        machine_ids = None if args.machine_id is None else [args.machine_id]
        write_figure(tsne_figure(detector, pack, machine_ids), args.out)
    except (
        DetectorError,
        ManifestError,
        AudioError,
        PackError,
        EmbeddingError,
        FigureFileError,
    ) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
