"""Evaluates a saved model on labelled clips: a table per machine id, the same as CSV, figures.

    python -m mimimi_core.evaluate --model runs/train/fan --data DIR

The model keeps its thresholds. `OUT/fan-evaluation` gets `per_id.csv`, `roc.png`, `scores.png`,
`decisions.png` and, of a system that tells ids apart, `ids.png`.
"""

import argparse
import logging
import sys
from pathlib import Path

from mimimi_core.analysis import analyse
from mimimi_core.audio import AudioError
from mimimi_core.clips import ManifestError, find_clips
from mimimi_core.detector import Detector, DetectorError
from mimimi_core.evaluation import Evaluation, evaluate
from mimimi_core.figure_file import FigureFileError, write_figure
from mimimi_core.id_table import table, write_csv
from mimimi_core.pack import Pack, PackError, open_pack, pack_clips
from mimimi_core.plots import evaluation_figures
from mimimi_core.training import NonFiniteLossError


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m mimimi_core.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder with a detector")
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        detector = Detector.load(args.model)
        packs = args.out / "packs"
        pack = open_data(args.data, detector.machine_type, packs, detector.sample_rate)
        evaluation = evaluate(detector, pack)
    except (ManifestError, AudioError, PackError, DetectorError, NonFiniteLossError) as error:
        print(error, file=sys.stderr)
        return 2
    folder = args.out / f"{detector.machine_type}-evaluation"
    try:
        write_evaluation(evaluation, folder)
    except (OSError, FigureFileError) as error:
        print(f"--out must be a folder that can be written: {error}", file=sys.stderr)
        return 2
    show(evaluation, detector.machine_type, folder)
    return 0


def open_data(data: Path, machine_type: str, packs: Path, sample_rate: int) -> Pack:
    """The clips of a machine type in a folder of recordings, packed below `packs`.

    Raises:
        ManifestError: The folder is in no known layout, or has no clips of the type.
        AudioError: A clip cannot be read.
        PackError: `packs` cannot be written.
    """
    clips = find_clips(data)
    if machine_type not in clips:
        raise ManifestError(
            f"the machine type must be one of those in {data}, {', '.join(clips)}, got "
            f"{machine_type!r}"
        )
    try:
        return open_pack(pack_clips(clips[machine_type], packs, sample_rate))
    except OSError as error:
        raise PackError(
            f"{packs}: must be a folder that can be written, for the clips are packed there: "
            f"{error}"
        ) from error


def show(evaluation: Evaluation, machine_type: str, folder: Path) -> None:
    """Print the table of the test, and the folder where `write_evaluation` wrote it."""
    print(f"{machine_type}, test clips\n")
    print("\n".join(table(analyse(evaluation))))
    print(f"val_auc {evaluation.val}")
    print(f"dev_auc {evaluation.dev}: val and test, to compare with published tables only")
    print(f"evaluation: {folder}")


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write the table of the test as `per_id.csv`, and its figures.

    Raises:
        OSError: The table cannot be written.
        FigureFileError: A figure cannot be written.
    """
    write_csv(analyse(evaluation), folder / "per_id.csv")
    for name, figure in evaluation_figures(evaluation).items():
        write_figure(figure, folder / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
