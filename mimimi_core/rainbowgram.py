"""Pictures the phase of clips: magnitude as brightness, phase derivative as colour (paper, Fig. 1).

    python -m mimimi_core.rainbowgram --out fan.png CLIP...

A steady tone is a line of one colour; a tone whose phase wanders is a line of many. Below some
300 Hz a bin is so narrow that noise, too, has the bin's own colour. As in Engel et al. (ICML 2017),
whose constant-Q transform this is, up to the highest frequency there is.
Legend: `K` bins of the constant-Q transform, `T` frames, `N` samples.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mimimi_core.audio import AudioError, read_clip
from mimimi_core.figure_file import FigureFileError, write_figure

SAMPLE_RATE = 16000  # Hz, of the command
# Engel et al.'s, but for the range: at their 70 dB a factory's hiss outshines a machine's lines.
HOP = 256  # samples
BINS_PER_OCTAVE = 40
LOWEST_HZ = 65.4
FILTER_SCALE = 0.8
RANGE_DB = 50.0
_COLOURS = "hsv"  # a circle, as phases are: a line at half a turn per hop keeps one colour
_COLUMNS = 4


class Rainbowgram(NamedTuple):
    """What a panel shows, from the lowest bin up."""

    intensity: np.ndarray  # (K, T) float32 0..1: level in dB over RANGE_DB below the clip's highest
    turns: np.ndarray  # (K, T) float32 -1..1: phase gained since the last frame, in units of pi


def rainbowgram(waveform: np.ndarray, sample_rate: int) -> Rainbowgram:
    """Level and phase derivative of a clip.

    Args:
        waveform: int16 `(N,)` of any length.
        sample_rate: Hz.
    """
    import librosa  # numba's compiler comes with it: seconds, which only figures need to pay

    # The longest filters reach over a second, and a derivative takes two frames.
    padded = np.pad(waveform, (0, max(0, 2 * sample_rate - len(waveform))))
    transform = librosa.cqt(
        padded.astype(np.float32) / 32768,
        sr=sample_rate,
        hop_length=HOP,
        fmin=LOWEST_HZ,
        n_bins=_n_bins(sample_rate),
        bins_per_octave=BINS_PER_OCTAVE,
        filter_scale=FILTER_SCALE,
    )[:, : max(2, 1 + len(waveform) // HOP)]
    level = np.abs(transform[:, 1:])
    peak = max(float(level.max()), 1e-9)  # of digital silence, which stays black
    decibels = 20 * np.log10(np.maximum(level / peak, 1e-9))
    turns = np.angle(transform[:, 1:] * transform[:, :-1].conj()) / np.pi
    return Rainbowgram(np.clip(1 + decibels / RANGE_DB, 0, 1), turns)


def rainbowgram_figure(
    clips: Sequence[tuple[str, np.ndarray | None]], sample_rate: int, columns: int = _COLUMNS
) -> Figure:
    """A panel per clip, row by row.

    Args:
        clips: Title and int16 `(N,)`; where there is no clip its panel stays empty.
        sample_rate: Hz.
        columns: Panels side by side.
    """
    columns = min(columns, len(clips))
    rows = -(-len(clips) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.5 + 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(clips) :]:
        axes.set_axis_off()
    for axes, (title, waveform) in zip(panels.flat, clips, strict=False):
        axes.set_title(title, fontsize=9, parse_math=False)
        if waveform is None:
            axes.set_axis_off()
        else:
            _draw(axes, waveform, sample_rate)
    figure.supxlabel("s", fontsize=10)
    figure.supylabel("Hz", fontsize=10)
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), _COLOURS), ax=panels, aspect=25 * rows)
    bar.set_ticks([-1, 0, 1], labels=["-π", "0", "π"])
    bar.set_label(f"phase gained in {1000 * HOP / sample_rate:g} ms")
    return figure


def _draw(axes: Axes, waveform: np.ndarray, sample_rate: int) -> None:
    found = rainbowgram(waveform, sample_rate)
    colours = colormaps[_COLOURS]((found.turns + 1) / 2)[..., :3]
    axes.imshow(
        (255 * colours * found.intensity[..., None]).astype(np.uint8),
        origin="lower",
        aspect="auto",
        extent=(0, len(waveform) / sample_rate, -0.5, len(found.turns) - 0.5),
    )
    n_octaves = len(found.turns) / BINS_PER_OCTAVE
    shown = [f for f in (100, 200, 500, 1000, 2000, 5000) if math.log2(f / LOWEST_HZ) < n_octaves]
    places = [BINS_PER_OCTAVE * math.log2(f / LOWEST_HZ) for f in shown]
    axes.set_yticks(places, [str(f) for f in shown])


def _n_bins(sample_rate: int) -> int:
    """Bins up to 0.9 of half the sample rate: the highest filter must end below it."""
    return math.floor(BINS_PER_OCTAVE * math.log2(0.45 * sample_rate / LOWEST_HZ))


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m mimimi_core.rainbowgram", description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="WAV file")
    parser.add_argument("--out", type=Path, required=True, help="such as fan.png")
    args = parser.parse_args(argv)
    try:
        clips = [(path.stem, read_clip(path, SAMPLE_RATE)) for path in args.clips]
        write_figure(rainbowgram_figure(clips, SAMPLE_RATE), args.out)
    except (AudioError, FigureFileError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
