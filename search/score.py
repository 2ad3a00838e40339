"""Scores clips with the champion of their machine type.

    python -m search.score --machine-type fan --machine-id id_00 CLIP...

prints CSV: clip,machine_id,score,threshold,decision. Higher scores are more anomalous; the
threshold is what a stated share of the machine's normal clips exceeds.
"""

import argparse
import csv
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mimimi_core.audio import AudioError, read_file
from mimimi_core.detector import Detector, DetectorError

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m search.score", description=__doc__)
    parser.add_argument("--machine-type", required=True)
    parser.add_argument("--machine-id", required=True, help="which machine the clips are from")
    parser.add_argument("--tracking-uri", default="sqlite:///runs/mlflow.db")
    parser.add_argument("--model", type=Path, help="a folder with a detector, not the champion")
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        detector = _load(args.model, args.machine_type, args.tracking_uri)
        waveforms = _read(args.clips, detector)
        scores = detector.score(waveforms, args.machine_id)
    except (AudioError, DetectorError) as error:
        print(error, file=sys.stderr)
        return 2
    threshold = detector.thresholds[args.machine_id]
    if args.machine_id in detector.untrained_ids:
        logger.warning(
            "%s has no threshold: no clip of it trained the model, so its scores count for nothing",
            args.machine_id,
        )
    elif threshold is None:
        logger.warning(
            "%s has no threshold: fewer than two held-out normal clips with different scores; "
            "scores only",
            args.machine_id,
        )
    writer = csv.writer(sys.stdout, lineterminator="\n")  # "\r\n" would be part of a word
    writer.writerow(["clip", "machine_id", "score", "threshold", "decision"])
    for clip, score in zip(args.clips, scores, strict=True):
        level = threshold.value if threshold else ""
        decision = detector.decide(float(score), args.machine_id) or ""
        writer.writerow([clip, args.machine_id, float(score), level, decision])
    return 0


def _read(clips: Sequence[Path], detector: Detector) -> list[np.ndarray]:
    """The clips as the detector hears them; says of which it is not quite what was recorded."""
    read = [read_file(clip, detector.sample_rate)[:2] for clip in clips]
    shortest = max(member.config.frontend.crop_samples for member in detector.members)
    for what, concerned in (
        (
            f"resampled to the model's {detector.sample_rate} Hz",
            [rate != detector.sample_rate for _, rate in read],
        ),
        (
            f"repeated, as shorter than the {shortest} samples of a crop",
            [len(waveform) < shortest for waveform, _ in read],
        ),
    ):
        if any(concerned):
            example = clips[concerned.index(True)]
            n = sum(concerned)
            logger.warning("%s: %d of %d clips, such as %s", what, n, len(clips), example)
    return [waveform for waveform, _ in read]


def _load(model: Path | None, machine_type: str, tracking_uri: str) -> Detector:
    if model is not None:
        detector = Detector.load(model)
        if detector.machine_type != machine_type:
            raise DetectorError(
                f"--machine-type must be {detector.machine_type!r}, that of the model in {model}, "
                f"got {machine_type!r}: give that type, or another --model"
            )
        return detector
    from search.registry import Registry  # brings MLflow, which takes longer than all the rest
    from search.tracking import TrackingError, check

    try:
        check(tracking_uri, create=False)
        with tempfile.TemporaryDirectory() as folder:
            champion = Registry(tracking_uri).download_champion(machine_type, Path(folder))
            return Detector.load(champion)
    except TrackingError as error:
        raise DetectorError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
