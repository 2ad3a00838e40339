"""One training and its evaluation, without a search.

    python -m mimimi_core.train --machine-type fan --data DIR

leaves `OUT/detector.json` and `OUT/weights.safetensors`, which `search.score --model OUT` reads.
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

from mimimi_core.audio import AudioError
from mimimi_core.clips import ManifestError, find_clips
from mimimi_core.config import ConfigError, TrainConfig, TrialConfig
from mimimi_core.evaluation import build_detector, describe, evaluate
from mimimi_core.pack import open_pack, pack_clips
from mimimi_core.training import NonFiniteLossError, Training

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
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        clips = find_clips(args.data)
        if args.machine_type not in clips:
            raise ManifestError(
                f"--machine-type {args.machine_type!r} is not in {args.data}; there are "
                f"{', '.join(clips)}"
            )
        train = dataclasses.replace(DEFAULTS, epochs=args.epochs, lr=args.lr, seed=args.seed)
        pack = open_pack(pack_clips(clips[args.machine_type], args.out / "packs"))
        training = Training(TrialConfig(train=train), pack)
    except (ManifestError, AudioError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        while not training.is_done:
            metrics = training.run_epoch()
            shown = "  ".join(f"{k} {v:.3f}" for k, v in metrics.items() if "/" not in k)
            print(f"epoch {training.epoch}/{args.epochs}  {shown}", file=sys.stderr)
    except NonFiniteLossError as error:
        print(error, file=sys.stderr)
        return 1
    evaluation = evaluate(training)
    model = args.out / args.machine_type
    build_detector(training, evaluation).save(model)
    for name in ("val", "test"):
        print("\n".join(describe(getattr(evaluation, name), f"{args.machine_type} {name}_auc")))
    for machine_id, threshold in evaluation.thresholds.items():
        shown = f"{threshold.value:.3f} from {threshold.n_normals} normals" if threshold else "none"
        print(f"threshold {machine_id}: {shown}")
    print(f"model: {model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
