"""The main job: search the best model of each machine type.

    python -m search.run --space spaces/complex.yaml

Exit 0 done, 1 study failed, 2 bad input. The last line of stdout is one JSON object. The same
command with the same --study resumes what is unfinished; a larger --trials extends it.
"""

import argparse
import errno
import json
import logging
import re
import sys
import tempfile
from pathlib import Path

from mimimi_core.audio import AudioError
from mimimi_core.clips import ManifestError
from search.config import SpaceError, SpaceFile, load_space
from search.data import DataError, Manifest, find_data
from search.uris import UriError, require_no_password

_USER_ERRORS = (SpaceError, DataError, ManifestError, AudioError, UriError)
_TAKEN = ("artifacts", "embedded", "mlflow.db", "packs")  # what else lies in --out
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; see the module."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        for option in ("storage", "tracking_uri"):
            if (uri := getattr(args, option)) is not None:
                require_no_password(uri, f"--{option.replace('_', '-')}")
        _require_name(args.study)
        overrides = {
            key: value
            for key in ("trials", "epochs", "seed")
            if (value := getattr(args, key)) is not None
        }
        space = load_space(args.space, overrides)
        time_budget_s = _seconds(args.time_budget)
        machine_types = _names(args.machine_types)
        if not args.dry_run:
            _require_folder(args.out)
        manifest = find_data(
            args.data, args.out, machine_types, space.study.joint, look_only=args.dry_run
        )
    except _USER_ERRORS as error:
        return _refuse(error)
    except OSError as error:
        return _end_without_room(error, args.out)
    if args.dry_run:
        from search.dry_run import describe_search

        print("\n".join(describe_search(space, manifest)))
        return 0
    return _search(args, space, manifest, time_budget_s)


def _search(
    args: argparse.Namespace, space: SpaceFile, manifest: Manifest, time_budget_s: float | None
) -> int:
    from search.study import SharedFilesError, StudyError, TrackingError, run_study

    try:
        summary, succeeded = run_study(
            space,
            manifest,
            name=args.study,
            space_name=args.space.stem,
            out=args.out,
            storage_uri=args.storage,
            storage_path=args.storage_path,
            tracking_uri=args.tracking_uri,
            address=args.address,
            time_budget_s=time_budget_s,
            promote=args.promote,
        )
    except (*_USER_ERRORS, SharedFilesError, StudyError, TrackingError) as error:
        return _refuse(error)
    except OSError as error:
        return _end_without_room(error, args.out)
    print(json.dumps(summary))
    return 0 if succeeded else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--space", type=Path, required=True, help="the space file (YAML)")
    add("--data", type=Path, help="folder of recordings; default: the embedded data set")
    add("--machine-types", help="such as fan,valve; default: all that the data has")
    add("--trials", type=int, help="per machine type; default: the space file's")
    add("--epochs", type=int, help="most epochs of a trial; default: the space file's")
    add("--time-budget", help="such as 90s, 10m, 8h; what is unfinished can be resumed")
    add("--study", help="name; default: made of the space, the data and the seed")
    add("--seed", type=int, help="default: the space file's")
    add("--address", help="of a Ray cluster; default: RAY_ADDRESS, else this machine")
    add("--storage", help="postgresql://USER@HOST/DB for the trials; default: a file below OUT")
    add("--tracking-uri", help="of MLflow; default: --storage, else sqlite:///OUT/mlflow.db")
    add("--out", type=Path, default=Path("runs"), help="folder of all results")
    add(
        "--storage-path",
        metavar="URI",
        help="where all nodes read packs and write checkpoints: a folder that they all mount, or "
        "s3://BUCKET/PREFIX, gs://..., abfs://...; default: OUT",
    )
    add("--dry-run", action="store_true", help="print what would be done, and stop")
    add("--promote", choices=["auto", "never"], default="auto")
    return parser


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise SpaceError(f"--machine-types must be different names with commas, got {text!r}")
    return names


def _require_name(study: str | None) -> None:
    """A study is a folder of --out, and a slash ends its name where Optuna stores it.

    Raises:
        SpaceError: The name is not that of one folder, or of one that has another use.
    """
    if study is not None and not re.fullmatch(r"\w[\w.-]*", study):
        raise SpaceError(
            "--study must be a name of letters, digits, '_', '-' and '.', the last two not at its "
            f"beginning, such as fans-2.1, got {study!r}"
        )
    if study in _TAKEN:
        raise SpaceError(
            f"--study must not be one of {', '.join(_TAKEN)}, which have another use in --out, "
            f"got {study!r}"
        )


def _require_folder(out: Path) -> None:
    """Make the folder of all results, and see that it can be written.

    Raises:
        SpaceError: It cannot.
        OSError: Its disk is full.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise SpaceError(
            f"--out must be a folder that can be written, got {out}: {error.strerror}"
        ) from error


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match or not float(match[1]):
        raise SpaceError(f"--time-budget must be a number with s, m, h or d, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def _end_without_room(error: OSError, out: Path) -> int:
    """The exit code for a full disk; any other error is raised."""
    if error.errno != errno.ENOSPC:
        raise error
    print(
        f"error: {error}; make room on the disk of --out {out}, or of temporary files, "
        "and repeat the command: what is recorded is safe",
        file=sys.stderr,
    )
    return 1


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped at once; repeat the command to continue")
