"""One training and its evaluation, without a search.

    python -m mimimi_core.train --machine-type fan --data DIR
    python -m mimimi_core.train --machine-type fan --data DIR --params frontend.kind=logmel \
        network.kind=mahalanobis

prints a table per machine id and leaves `OUT/fan`, which `search.score --model OUT/fan` reads, and
`OUT/fan-evaluation` with the table as CSV and figures.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from mimimi_core.audio import AudioError
from mimimi_core.clips import ManifestError
from mimimi_core.config import ConfigError, TrainConfig, TrialConfig
from mimimi_core.evaluate import open_data, show, write_evaluation
from mimimi_core.evaluation import build_detector, evaluate
from mimimi_core.figure_file import FigureFileError
from mimimi_core.pack import PackError
from mimimi_core.training import NonFiniteLossError, Training

logger = logging.getLogger(__name__)

DEFAULTS = TrainConfig()


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 the training failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m mimimi_core.train", description=__doc__)
    parser.add_argument("--machine-type", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--out", type=Path, default=Path("runs/train"))
    parser.add_argument("--epochs", type=int, default=DEFAULTS.epochs)
    parser.add_argument("--lr", type=float, default=DEFAULTS.lr)
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed)
    parser.add_argument(
        "--params",
        type=_param,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="any setting of mimimi_core/config.py; goes before the three above",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        given = {f"train.{name}": getattr(args, name) for name in ("epochs", "lr", "seed")}
        config = TrialConfig.from_params(given | dict(args.params))
        rate = config.frontend.sample_rate
        pack = open_data(args.data, args.machine_type, args.out / "packs", rate)
        training = Training(config, pack)
    except (ManifestError, AudioError, PackError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    for machine_id in pack.untrained_ids:
        logger.warning(
            "%s %s has no training clips: it cannot be judged", args.machine_type, machine_id
        )
    try:
        while not training.is_done:
            metrics = training.run_epoch()
            shown = "  ".join(f"{k} {v:.3f}" for k, v in metrics.items() if "/" not in k)
            print(f"epoch {training.epoch}/{config.train.epochs}  {shown}", file=sys.stderr)
        detector = build_detector([training])
        evaluation = evaluate(detector, pack)
    except NonFiniteLossError as error:
        print(error, file=sys.stderr)
        return 1
    model = args.out / args.machine_type
    folder = args.out / f"{args.machine_type}-evaluation"
    try:
        detector.save(model)
        write_evaluation(evaluation, folder)
    except (OSError, FigureFileError) as error:
        print(f"--out must be a folder that can be written: {error}", file=sys.stderr)
        return 2
    show(evaluation, args.machine_type, folder)
    print(f"model: {model}")
    return 0


def _param(text: str) -> tuple[str, object]:
    """Name and value of `network.attention=false`; what is no JSON is a string."""
    name, is_given, value = text.partition("=")
    if not is_given:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
