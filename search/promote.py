"""Shows which versions of a machine type's model were promoted or kept, and why; rolls back.

    python -m search.promote --machine-type fan
    python -m search.promote --machine-type fan --rollback 2 --reason "false alarms at night"

Searches promote by themselves, see search/champions.py. A rollback moves the alias `champion` to
another version, records whom it replaced and why, and deletes nothing.
"""

import argparse
import sys
from datetime import UTC, datetime

from search.registry import Registry
from search.tracking import TrackingError, check

_ROLLBACK = "rollback/"  # tag of a version, with the time: "rollback/2026-11-21 23:05:31"
_TIME = "%Y-%m-%d %H:%M:%S"
_HEADER = ("", "version", "when (UTC)", "study/trial", "test_auc", "decision", "reason")


class RollbackError(ValueError):
    """A rollback is asked for in a way that makes no sense."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m search.promote",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--machine-type", required=True)
    add("--tracking-uri", default="sqlite:///runs/mlflow.db")
    add("--rollback", type=int, metavar="VERSION", help="make this version the champion")
    add("--reason", default="", help="of the rollback, for those who come later")
    args = parser.parse_args(argv)
    try:
        if (args.rollback is not None) != bool(args.reason.strip()):
            raise RollbackError("--rollback VERSION needs --reason TEXT, and the other way round")
        check(args.tracking_uri, create=False)
        registry = Registry(args.tracking_uri)
        rows = history(registry, args.machine_type)
        if not rows:
            raise TrackingError(
                f"no model of machine type {args.machine_type!r} at {args.tracking_uri}; "
                "run python -m search.run first"
            )
        if args.rollback is not None:
            roll_back(registry, args.machine_type, args.rollback, args.reason)
            rows = history(registry, args.machine_type)
    except (RollbackError, TrackingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_table([_HEADER, *rows]))
    return 0


def history(registry: Registry, machine_type: str) -> list[tuple[str, ...]]:
    """Rows as of `_HEADER`, by time: a decision per version, and the rollbacks."""
    champion = registry.champion(machine_type)
    decisions, rollbacks = [], []
    for version in registry.versions(machine_type):
        tags = version.tags
        mark = "*" if champion and champion[0] == version.number else ""
        number, test_auc = str(version.number), tags.get("test_auc", "none")
        trial = f"{tags.get('study', '?')}/{tags.get('trial', '?')}"
        decision, _, reason = tags.get("decision", "none: undecided").partition(": ")
        created = version.created.strftime(_TIME)
        decisions.append((mark, number, created, trial, test_auc, decision, reason))
        for key, text in tags.items():
            if key.startswith(_ROLLBACK):
                moment = key.removeprefix(_ROLLBACK)
                rollbacks.append((mark, number, moment, trial, test_auc, "rolled back", text))
    return sorted(decisions + rollbacks, key=lambda row: row[2])


def roll_back(registry: Registry, machine_type: str, version: int, reason: str) -> None:
    """Make a version champion because a person says so; the record comes first.

    Raises:
        RollbackError: There is no such version, or it is the champion already.
    """
    known = [v.number for v in registry.versions(machine_type)]
    if version not in known:
        numbers = ", ".join(map(str, known))
        raise RollbackError(
            f"--rollback must be a version of {machine_type}: {numbers}, got {version}"
        )
    champion = registry.champion(machine_type)
    if champion and champion[0] == version:
        raise RollbackError(f"--rollback {version}: it is the champion of {machine_type} already")
    replaced = f"from version {champion[0]}" if champion else "from no champion"
    moment = datetime.now(UTC).strftime(_TIME)
    registry.set_tags(machine_type, version, {f"{_ROLLBACK}{moment}": f"{replaced}: {reason}"})
    registry.set_champion(machine_type, version)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
