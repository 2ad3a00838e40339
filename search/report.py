"""Reports on a study, also while it runs: a page, the same as tables, and all trials as CSV.

    python -m search.report --study NAME

Writes `report.html`, `report.md` and `trials.csv` into OUT/NAME/report; where all finalists met the
test (`confirmation.test: all`) also `systems.md`, `.csv` and `.png`, their table beside published
ones, which is printed as well. Exit 0 done, 2 bad input.
"""

import argparse
import csv
import io
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from search.report_facts import ReportError, TypeFacts, read_facts
from search.report_joint import joint_section
from search.report_page import TypeReport, render_html, render_markdown
from search.report_sections import build_sections
from search.report_summary import key_facts
from search.report_table import build_table, csv_text, picture, table_sections
from search.studies import STAMPS

# What benchmarks found of an objective that needs no anomaly, as the report says it.
LABEL_FREE_EVIDENCE: dict[str, str] = {
    "id_swap_auc": "0.76 [0.61, 0.83] over 80 random settings on the embedded data, for it tells "
    "trained networks from untrained ones; it saturates, and ranks none of the trained ones",
    "normal_log_likelihood": "0.68 [0.49, 0.79] over 80 random settings on the embedded data, for "
    "it tells trained networks from untrained ones; 0.18 [-0.16, 0.49] over the 38 trained ones",
}
_COLUMNS = (
    "machine_type",
    "number",
    "state",
    "reason",
    "objective",
    "value",
    "second_objective",
    "second_value",
    "epochs",
    "seconds",
    "attempts",
    "started",
    "ended",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m search.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", required=True, help="name of the study")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of all results")
    parser.add_argument("--storage", help="of the search; default: what OUT/NAME says")
    args = parser.parse_args(argv)
    try:
        folder = write_report(args.out / args.study, args.storage)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        target = args.out / args.study / "report"
        print(f"error: {target} must be a folder that can be written: {error}", file=sys.stderr)
        return 2
    table = folder / "systems.md"
    if table.exists():
        print(table.read_text(encoding="utf-8"))
    print(folder / "report.html")
    return 0


def write_report(folder: Path, storage_uri: str | None = None) -> Path:
    """Write the report on a study, as it is now.

    Args:
        folder: Of the study, `<out>/<study>`; nothing in it is locked or changed.
        storage_uri: Where the study's trials are, if not where its folder says.

    Returns:
        Its folder `report`, with `report.html`, `report.md` and `trials.csv`, and the files of the
        systems' table where there is one.

    Raises:
        ReportError: There is no storage, or no such study in it.
    """
    types = read_facts(folder, storage_uri)
    reports = [
        TypeReport(
            machine_type=facts.machine_type,
            key_facts=key_facts(facts, LABEL_FREE_EVIDENCE),
            sections=build_sections(facts),
        )
        for facts in types
    ]
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    target = folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "trials.csv", _trials_csv(types))
    joint, table = joint_section(types), build_table(types)
    overview = [] if joint is None else [joint]
    if table is not None:
        image = _png(picture(table))
        side_by_side = table_sections(table, image)
        title = f"{folder.name}: systems side by side"
        _write(target / "systems.md", render_markdown(title, written, (), side_by_side))
        _write(target / "systems.csv", csv_text(table))
        _write(target / "systems.png", image)
        overview += side_by_side
    _write(target / "report.md", render_markdown(folder.name, written, reports, overview))
    _write(target / "report.html", render_html(folder.name, written, reports, overview))
    return target


def _trials_csv(types: Sequence[TypeFacts]) -> str:
    """A row per trial: facts, last metrics, parameters; empty is what it has not.

    The value of a trial that is not complete is that of its last epoch, as its state tells.
    """
    trials = [trial for facts in types for trial in facts.trials]
    metrics = sorted({name for t in trials for name in t.metrics} - {"seconds", *STAMPS})
    params = sorted({name for trial in trials for name in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *metrics, *params])
    for facts in types:
        for trial in facts.trials:
            row: list[Any] = [facts.machine_type, trial.number, trial.state, trial.reason]
            row += [facts.objective, trial.value, facts.second_objective, trial.second]
            row += [trial.epochs, trial.seconds if trial.n_timed else None, trial.attempts]
            row += [_iso(trial.started), _iso(trial.ended)]
            row += [trial.metrics.get(name) for name in metrics]
            row += [trial.params.get(name) for name in params]
            writer.writerow(row)
    return text.getvalue()


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(sep=" ", timespec="seconds")


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()


def _write(path: Path, content: str | bytes) -> None:
    """Replace the file in one step; another process may write the same report."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
