"""The parts of a report on one machine type: text, a table and a figure each.

The page and the Markdown file are both made of these, so they say the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search import report_figures as figures
from search import report_parameters as parameters
from search.report_facts import STATES, TrialFacts, TypeFacts
from search.report_summary import interval, number

_MOST_ROWS = 30  # of a table; trials.csv has them all
_MOST_BEST = 10  # trials in the table of the best
_MOST_COLUMNS = 6  # parameters in that table


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report; without rows it has no table."""

    title: str
    text: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: go.Figure | None = None
    image: bytes | None = None  # PNG
    is_wide: bool = False  # else two stand side by side


def build_sections(facts: TypeFacts) -> list[Section]:
    """All sections of a machine type that have something to say, in reading order."""
    importance = parameters.importance_of(facts)
    sections = [
        _history(facts),
        _confirmation(facts),
        _per_id(facts),
        _rungs(facts),
        _cost_section(facts),
        _importance(facts, importance),
        _pareto(facts),
        _slices(facts, importance),
        _parallel(facts, importance),
        _label_free(facts),
        _losses(facts),
    ]
    return [section for section in sections if section is not None]


def _history(facts: TypeFacts) -> Section:
    rows, best = [], -np.inf
    for trial in facts.of_state("complete"):
        if trial.value is not None and trial.value > best:
            best = trial.value
            rows.append((str(trial.number), f"{best:.3f}", str(trial.epochs), _when(trial)))
    return Section(
        title="History",
        text=(
            "Only complete trials can be best. A pruned one is shown at its last value; "
            "diamonds are finalists trained again with fresh seeds, from the lowest to the "
            "highest."
            if facts.trials
            else "No trial yet.",
        ),
        header=("trial that became best", facts.objective, "epochs", "ended"),
        rows=tuple(rows),
        figure=figures.history_figure(facts),
        is_wide=True,
    )


def _confirmation(facts: TypeFacts) -> Section | None:
    if not facts.finalists:
        return None
    header = ("trial", "in the search", "mean of fresh seeds", "each seed")
    has_failures = any(seeds.failures for seeds in facts.finalists)
    rows = []
    for seeds in facts.finalists:
        mark = " (winner)" if seeds.number == facts.winner else ""
        row = (
            f"{seeds.number}{mark}",
            number(facts.trial(seeds.number).value),
            number(seeds.mean),
            ", ".join(f"{value:.3f}" for value in seeds.values),
        )
        rows.append((*row, "; ".join(seeds.failures)) if has_failures else row)
    return Section(
        title="Confirmation",
        text=(
            "The best trials of the search, trained again with seeds that it never saw. The "
            "highest mean of those that are still among the best wins, so not a finalist that "
            "later trials have displaced, nor one of which a seed failed.",
        ),
        header=(*header, "failures") if has_failures else header,
        rows=tuple(rows),
    )


def _per_id(facts: TypeFacts) -> Section | None:
    per_id: Sequence[Mapping[str, Any]] = facts.outcome.get("test_per_id", ())
    if not per_id:
        return None
    rows = [
        (
            str(row["machine_id"]),
            number(row["auc"]),
            interval(row["ci"]),
            str(row["n_normal"]),
            str(row["n_anomaly"]),
        )
        for row in per_id
    ]
    expected = facts.outcome.get("findings", {}).get("test_auc")
    return Section(
        title="Winner on the test clips, per machine id",
        header=("id", "test AUC", "95 % interval", "normal clips", "anomalous clips"),
        rows=tuple(rows),
        figure=figures.per_id_figure(per_id, expected),
    )


def _rungs(facts: TypeFacts) -> Section | None:
    rungs = facts.rungs()
    if not rungs:
        return None
    shown = [rung for rung in rungs if rung.ended or rung.epoch == 1]
    states = [state for state in STATES if any(rung.ended.get(state) for rung in rungs)]
    rows = [
        (
            str(rung.epoch),
            str(rung.reached),
            str(rung.went_on),
            *(str(rung.ended.get(state, 0)) for state in states),
        )
        for rung in shown
    ]
    return Section(
        title="Survival from epoch to epoch",
        text=("Grey trials went on; the others ended, or are, at this epoch.",),
        header=("epoch", "reached", "went on", *states),
        rows=tuple(rows),
        figure=figures.rung_figure(facts),
    )


def _cost_section(facts: TypeFacts) -> Section | None:
    if not any(trial.epochs for trial in facts.trials):
        return None
    unit = facts.cost_unit
    rows = []
    for state in STATES:
        trials = facts.of_state(state)
        if trials:
            epochs = str(sum(trial.epochs for trial in trials))
            rows.append((state, str(len(trials)), epochs, _cost_of(facts, trials)))
    everything = list(facts.trials)
    n_epochs = sum(len(trial.curve) for trial in everything)
    rows.append(("all", str(len(everything)), str(n_epochs), _cost_of(facts, everything)))
    if facts.confirmation_cost is not None:
        n_seeds = sum(len(seeds.values) for seeds in facts.finalists)
        rows.append(("fresh seeds", str(n_seeds), "", f"{facts.confirmation_cost:.3g}"))
    untimed = n_epochs - sum(trial.n_timed for trial in everything)
    text = []
    if untimed == n_epochs:
        text.append("No epoch of this study carries its time, so the cost is shown in epochs.")
    elif untimed:
        text.append(f"{untimed} of {n_epochs} epochs carry no time and are not counted.")
    if facts.saved is not None:
        text.append(
            f"Pruning saved at most {facts.saved:.3g} {unit}: what the pruned trials would have "
            f"cost beyond that, each at its own pace, had all of them run {facts.n_epochs} epochs."
        )
    return Section(
        title="Cost",
        text=tuple(text),
        header=("state", "trials", "epochs", unit),
        rows=tuple(rows),
        figure=figures.cost_figure(facts),
    )


def _importance(facts: TypeFacts, importance: parameters.Importance | None) -> Section:
    n = facts.counts["complete"]
    title = "Which parameters matter"
    if importance is None:
        least = parameters.MIN_FOR_IMPORTANCE
        text = f"{n} complete trials are too few to tell: it takes {least}."
        if n and not any(trial.distributions for trial in facts.of_state("complete")):
            text = "No parameter was searched."
        return Section(title=title, text=(text,))
    text = (
        f"Optuna's PED-ANOVA: where the best tenth of the {n} complete trials differs most from "
        "the rest. The fewer trials, the more of it is chance."
    )
    doubts = tuple(f"Optuna warns: {doubt}" for doubt in importance.doubts)
    return Section(
        title=title,
        text=(text, *doubts),
        header=("parameter", "share"),
        rows=tuple((name, f"{share:.3f}") for name, share in importance.shares.items()),
        figure=parameters.importance_figure(importance),
    )


def _pareto(facts: TypeFacts) -> Section | None:
    if facts.second_objective is None:
        return None
    front = facts.pareto_front()
    rows = [(str(t.number), number(t.value), f"{t.second:.4g}") for t in front]
    return Section(
        title="Pareto front",
        text=(
            f"Complete trials that no other beats in both {facts.objective} (more is better) and "
            f"{facts.second_objective} (less is better)."
            if front
            else "No complete trial has both objectives yet.",
        ),
        header=("trial", facts.objective, facts.second_objective) if front else (),
        rows=tuple(rows),
        figure=figures.pareto_figure(facts),
    )


def _slices(facts: TypeFacts, importance: parameters.Importance | None) -> Section | None:
    figure = parameters.slice_figure(facts, importance)
    if figure is None:
        return None
    best = facts.best
    winner = None if facts.winner is None else facts.trial(facts.winner)
    rows = []
    for name, tried in parameters.tried_values(facts).items():
        rows.append((name, tried, _param(best, name), _param(winner, name)))
    return Section(
        title="Each parameter by itself",
        text=("Complete and pruned trials; a pruned one at its last value.",),
        header=("parameter", "tried", "best of the search", "winner"),
        rows=tuple(rows),
        figure=figure,
        is_wide=True,
    )


def _parallel(facts: TypeFacts, importance: parameters.Importance | None) -> Section | None:
    figure = parameters.parallel_figure(facts, importance)
    if figure is None:
        return None
    names = parameters.varied(facts.of_state("complete"), importance)[:_MOST_COLUMNS]
    rows = [
        (str(trial.number), number(trial.value), *(_param(trial, name) for name in names))
        for trial in facts.complete[:_MOST_BEST]
    ]
    return Section(
        title="Parameters together",
        text=("Complete trials, a line each.",),
        header=("best trials", facts.objective, *names),
        rows=tuple(rows),
        figure=figure,
        is_wide=True,
    )


def _label_free(facts: TypeFacts) -> Section | None:
    found = [c for c in facts.rank_correlations() if c.n]
    if not found:
        return None
    rows = [
        (
            c.figure,
            "too few, or all alike" if c.rho is None else f"{c.rho:.2f}",
            interval(c.interval, digits=2),
            str(c.n),
        )
        for c in found
    ]
    return Section(
        title="Figures that need no anomaly, against val_auc",
        text=(
            "Spearman's rank correlation over the complete trials: 1 would mean that a search "
            "without labelled anomalies ranks networks as the anomalies do.",
        ),
        header=("figure", "rank correlation", "95 % interval", "trials"),
        rows=tuple(rows),
    )


def _losses(facts: TypeFacts) -> Section | None:
    lost = facts.of_state("failed", "infeasible")
    if not lost:
        return None
    rows = [(str(t.number), t.state, str(t.epochs), t.reason or "none") for t in lost[:_MOST_ROWS]]
    left = len(lost) - len(rows)
    return Section(
        title="Trials that came to nothing",
        text=(f"{left} more are in trials.csv.",) if left else (),
        header=("trial", "state", "epochs", "reason"),
        rows=tuple(rows),
    )


def _cost_of(facts: TypeFacts, trials: Sequence[TrialFacts]) -> str:
    cost = facts.cost(trials)
    return "not recorded" if cost is None else f"{cost:.3g}"


def _param(trial: TrialFacts | None, name: str) -> str:
    if trial is None or name not in trial.params:
        return "–"
    return figures.shown(trial.params[name])


def _when(trial: TrialFacts) -> str:
    return trial.ended.strftime("%Y-%m-%d %H:%M") if trial.ended else ""
