"""The systems of a study side by side, and what others published: Markdown, CSV and a picture.

There is such a table where all finalists met the test (`confirmation.test: all`).
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import figure as mpl

from mimimi_core import table2
from mimimi_core.metrics import Interval, interval_of_mean
from mimimi_core.published import PUBLISHED
from search.data import JOINT
from search.report_facts import TypeFacts
from search.report_figures import shown
from search.report_sections import Section

_OURS, _GIVEN = "this study", "published"
_COLUMNS = (
    "system",
    "source",
    "clips",
    "machine_type",
    "auc",
    "auc_low",
    "auc_high",
    "auc_seed_std",
    "pauc",
    "pauc_low",
    "pauc_high",
    "pauc_seed_std",
    "n_seeds",
    "n_clips",
)
_COLORS = {_OURS: "#14325c", _GIVEN: "#c2410c"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An AUC or pAUC in 0..1."""

    value: float
    ci: Interval | None = None  # over clips
    of_seeds: tuple[float, ...] = ()

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds."""
        return float(np.std(self.of_seeds, ddof=1)) if len(self.of_seeds) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one system reached on one machine type."""

    auc: Figure | None
    pauc: Figure | None
    n_clips: int | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One system, by whom, on which clips: "test", "dev" (val and test), or the published set."""

    system: str
    source: str
    clips: str
    cells: Mapping[str, Cell]  # machine type -> cell; types without a figure are absent


@dataclass(frozen=True, kw_only=True)
class Table:
    """All lines, and how the figures came about."""

    machine_types: tuple[str, ...]
    lines: tuple[Line, ...]
    protocol: tuple[str, ...]

    def of(self, clips: str, source: str) -> list[Line]:
        """Lines of one kind, in order."""
        return [line for line in self.lines if (line.clips, line.source) == (clips, source)]


def build_table(types: Sequence[TypeFacts]) -> Table | None:
    """The table of a study; None where the finalists did not meet the test."""
    tested = [facts for facts in types if facts.systems]
    if not tested:
        return None
    names = [facts.machine_type for facts in tested]
    lines = [line for clips in ("test", "dev") for line in _ours(tested, clips)]
    return Table(
        machine_types=tuple(names),
        lines=(*lines, *_published(names)),
        protocol=tuple(_protocol(tested)),
    )


def _ours(types: Sequence[TypeFacts], clips: str) -> Iterator[Line]:
    """A line per system, those of the paper's table first and in its order."""
    known = [row.name for row in table2.SYSTEMS] + list(table2.ENSEMBLES)
    order = {name: place for place, name in enumerate(known)}
    found: dict[str, dict[str, Cell]] = {}
    places: dict[str, int] = {}
    for facts in types:
        for name, system in zip(_names(facts), facts.systems, strict=True):
            places[name] = order.get(system["system"], len(order))
            figures = system[clips]
            found.setdefault(name, {})[facts.machine_type] = Cell(
                auc=_figure(figures["auc"], figures["ci"], figures["auc_of_seeds"]),
                pauc=_figure(figures["pauc"], figures["pauc_ci"], figures["pauc_of_seeds"]),
                n_clips=figures["n_clips"],
            )
    for name in sorted(found, key=lambda name: (places[name], name)):
        yield Line(system=name, source=_OURS, clips=clips, cells=found[name])


def _figure(
    value: float | None, ci: Sequence[float] | None, of_seeds: Sequence[float]
) -> Figure | None:
    if value is None:
        return None
    return Figure(value=value, ci=None if ci is None else (ci[0], ci[1]), of_seeds=tuple(of_seeds))


def _names(facts: TypeFacts) -> list[str]:
    """A name for each system: the paper's, with what differs where several finalists have it."""
    own = Counter(system["system"] for system in facts.systems)
    names = []
    for system in facts.systems:
        name, number = system["system"], system["number"]
        if name is None:
            name = _differing(facts, number)
        elif own[name] > 1:
            name = f"{name} ({_differing(facts, number)})"
        names.append(name)
    repeated = Counter(names)
    return [
        f"{name}, trial {system['number']}" if repeated[name] > 1 else name
        for name, system in zip(names, facts.systems, strict=True)
    ]


def _differing(facts: TypeFacts, number: int) -> str:
    """A system without a name by the parameters that were searched."""
    trial = facts.trial(number)
    told = [f"{name}={shown(trial.params[name])}" for name in trial.distributions]
    return ", ".join(told) or f"trial {number}"


def _published(machine_types: Sequence[str]) -> Iterator[Line]:
    paper = [(f"{row.name} (Kim et al.)", row.auc or (), ()) for row in table2.ROWS]
    others = [(other.name, other.auc, other.pauc or ()) for other in PUBLISHED]
    for name, auc, pauc in (*paper, *others):
        cells = {
            machine_type: Cell(
                auc=Figure(value=auc[i] / 100), pauc=Figure(value=pauc[i] / 100) if pauc else None
            )
            for i, machine_type in enumerate(table2.MACHINE_TYPES)
            if machine_type in machine_types
        }
        if cells:
            yield Line(system=name, source=_GIVEN, clips="dev", cells=cells)


def _protocol(types: Sequence[TypeFacts]) -> Iterator[str]:
    yield (
        "Figures are in %: the mean over machine ids, of the mean over seeds; in brackets the 95 % "
        "interval over clips, after ± the standard deviation over seeds. A pAUC (false alarm rate "
        "up to 0.1, standardised) is without brackets where all resamplings agree, as where every "
        "anomaly scores above every normal clip."
    )
    for facts in types:
        system = facts.systems[0]
        seeds = sorted({len(s["test"]["auc_of_seeds"]) for s in facts.systems})
        left_out = [
            f"; without AUC and left out on {clips}: {', '.join(system[clips]['without_auc'])}"
            for clips in ("test", "dev")
            if system[clips]["without_auc"]
        ]
        yield (
            f"{facts.machine_type}: {system['test']['n_clips']} test clips, "
            f"{system['dev']['n_clips']} dev clips; {' or '.join(map(str, seeds))} seeds of each "
            f"system{''.join(left_out)}."
        )
    yield (
        "Clips: each labelled clip is in val or test by a hash of its content. Dev is both "
        "together, which is what published tables use where the data are the DCASE 2020 Task 2 "
        "development set; with other data, published figures are no comparison at all."
    )
    yield (
        "Seeds: every system is trained afresh, to its last epoch or, with train.patience, to its "
        "best by the objective; all seeds count, and none was seen when systems were chosen."
    )
    for facts in types:
        tested = sum(system["number"] is not None for system in facts.systems)
        complete = facts.n_chosen_from or facts.counts["complete"]
        yield f"Selection, {facts.machine_type}: " + (
            "none, every complete trial is here."
            if tested >= complete
            else f"the best {tested} of {complete} complete trials by {facts.objective} on val, so "
            "figures on dev flatter them; those on test do not."
        )
    yield (
        "Crops: a clip's score is the mean over windows side by side, the last one at its end "
        "(5 windows for 10 s in the paper's setting); the paper does not state its own."
    )
    yield (
        "Linear combination (Giri et al.): waveforms are combined, spectra in the paper. For "
        "complex spectra that is the same; the log-mel and magnitude rows differ in it."
    )
    yield (
        "Ensembles: the mean of the members' scores, z-normalised per id by normal clips held out "
        "of training, those of val among them."
    )
    for other in PUBLISHED:
        yield f"{other.name}: {other.protocol} ({other.source})."


def table_sections(table: Table, image: bytes) -> list[Section]:
    """The protocol, then AUC and pAUC of the test clips and of all labelled clips.

    Args:
        table: What is shown.
        image: Its picture.
    """
    sections = [Section(title="How the figures came about", text=table.protocol, is_wide=True)]
    for title, lines in (
        ("Systems on the test clips", table.of("test", _OURS)),
        ("Systems on all labelled clips (dev)", table.of("dev", _OURS)),
        ("Published, on all labelled clips of the DCASE 2020 set", table.of("dev", _GIVEN)),
    ):
        if lines:
            header, rows = _rows(table.machine_types, lines)
            sections.append(Section(title=title, header=header, rows=tuple(rows), is_wide=True))
    sections.append(
        Section(title="Systems as a picture", text=("As systems.png.",), image=image, is_wide=True)
    )
    return sections


def _rows(
    types: Sequence[str], lines: Sequence[Line]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows for people: AUC per type and their mean, then pAUC.

    The joint classifier's clips are those of the types once more, so it counts in no mean.
    """
    header = ("system", *types, "mean", *(f"pAUC {name}" for name in types), "pAUC mean")
    single = [place for place, name in enumerate(types) if name != JOINT]
    rows = []
    for line in lines:
        cells = [line.cells.get(name) for name in types]
        aucs = [None if cell is None else cell.auc for cell in cells]
        paucs = [None if cell is None else cell.pauc for cell in cells]
        auc, pauc = (_mean([figures[place] for place in single]) for figures in (aucs, paucs))
        rows.append((line.system, *map(_shown, aucs), auc, *map(_shown, paucs), pauc))
    return header, rows


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return ""
    text = _percent(figure.value)
    if figure.ci is not None:
        text += f" [{_percent(figure.ci[0])}, {_percent(figure.ci[1])}]"
    return text if figure.spread is None else f"{text} ±{_percent(figure.spread)}"


def _mean(figures: Sequence[Figure | None]) -> str:
    """Mean over types, with its interval where all have one; empty unless all have a figure."""
    found = [figure for figure in figures if figure is not None]
    if not found or len(found) < len(figures):
        return ""
    values = np.array([figure.value for figure in found])
    intervals = [figure.ci for figure in found if figure.ci is not None]
    whole = len(intervals) == len(found)
    ci = interval_of_mean(values, intervals) if whole else None
    return _shown(Figure(value=float(values.mean()), ci=ci))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def csv_text(table: Table) -> str:
    """A row per system, machine type and clips, AUCs in 0..1; empty is what is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in table.lines:
        for machine_type, cell in line.cells.items():
            row: list[Any] = [line.system, line.source, line.clips, machine_type]
            for figure in (cell.auc, cell.pauc):
                low, high = (figure and figure.ci) or (None, None)
                row += [figure and figure.value, low, high, figure and figure.spread]
            n_seeds = len(cell.auc.of_seeds) if cell.auc else 0
            writer.writerow([*row, n_seeds or None, cell.n_clips])
    return text.getvalue()


def picture(table: Table) -> mpl.Figure:
    """AUC on all labelled clips: a panel per machine type, a row per system."""
    lines = table.of("dev", _OURS) + table.of("dev", _GIVEN)
    types = table.machine_types
    figure = mpl.Figure(
        figsize=(4.2 + 2.6 * len(types), 1.9 + 0.3 * len(lines)), layout="constrained"
    )
    panels = figure.subplots(1, len(types), sharey=True, squeeze=False)[0]
    for axes, machine_type in zip(panels, types, strict=True):
        for place, line in enumerate(lines):
            cell, color = line.cells.get(machine_type), _COLORS[line.source]
            if cell is None or cell.auc is None:
                continue
            auc, is_ours = cell.auc, line.source == _OURS
            if auc.ci is not None:
                axes.plot(auc.ci, [place, place], color=color, linewidth=2, alpha=0.5)
            axes.plot(auc.of_seeds, [place] * len(auc.of_seeds), "|", color=color, markersize=9)
            inside = color if is_ours else "white"
            axes.plot(auc.value, place, "o" if is_ours else "D", color=color, mfc=inside)
        axes.set_title(machine_type, parse_math=False)
        axes.set_xlabel("AUC")
        axes.grid(axis="x", color="0.9")
        axes.axvline(0.5, color="0.7", linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    names = [line.system for line in lines]
    panels[0].set_yticks(range(len(lines)), names, parse_math=False)
    panels[0].invert_yaxis()
    figure.suptitle(
        "All labelled clips (dev)\n● this study: 95 % interval over clips, a tick per seed\n"
        "◇ published, by other protocols",
        fontsize=10,
    )
    return figure
