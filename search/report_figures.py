"""Plotly figures of one machine type's study; a figure is None where there is nothing to show.

Colours and signs mean the same in all of them: `STATE_STYLES`, which the page explains once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from search.report_facts import TrialFacts, TypeFacts

STATE_STYLES = {  # state -> colour, sign of plotly; a waiting trial is drawn nowhere
    "complete": ("#2563a8", "circle"),
    "pruned": ("#d97b16", "triangle-down-open"),
    "infeasible": ("#7a7a7a", "square-open"),
    "failed": ("#c02b2b", "x-thin-open"),
    "running": ("#2f9152", "circle-open"),
    "paused": ("#8d7b3a", "triangle-up-open"),
}
WENT_ON = "#dfe5ec"  # trials that lived on after an epoch
BEST_SO_FAR = "#14325c"
FRESH_SEEDS = "#8e24aa"


def history_figure(facts: TypeFacts) -> go.Figure | None:
    """Every trial at its objective or last value, the best so far, the finalists' fresh seeds."""
    valued = [trial for trial in facts.trials if trial.value is not None]
    if not valued:
        return None
    figure = go.Figure()
    xs, ys, best = [], [], None
    for trial in facts.of_state("complete"):
        if trial.value is not None and (best is None or trial.value > best):
            best = trial.value
            xs.append(trial.number)
            ys.append(best)
    if best is not None:
        xs.append(max(facts.trials[-1].number, xs[-1]))
        ys.append(best)
        line = {"color": BEST_SO_FAR, "width": 2, "shape": "hv"}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip")
        figure.add_annotation(
            x=xs[-1], y=best, text="best so far", showarrow=False, xanchor="right", yshift=10
        )
    for state in STATE_STYLES:
        of_state = [trial for trial in valued if trial.state == state]
        if of_state:
            figure.add_scatter(
                x=[trial.number for trial in of_state],
                y=[trial.value for trial in of_state],
                text=[_hover(trial) for trial in of_state],
                mode="markers",
                marker=marker(state),
                hovertemplate="%{text}<extra></extra>",
            )
    confirmed = [seeds for seeds in facts.finalists if seeds.mean is not None]
    if confirmed:
        means = [seeds.mean or 0.0 for seeds in confirmed]
        figure.add_scatter(
            x=[seeds.number for seeds in confirmed],
            y=means,
            mode="markers",
            marker={"color": FRESH_SEEDS, "symbol": "diamond", "size": 10},
            error_y={
                "array": [max(s.values) - m for s, m in zip(confirmed, means, strict=True)],
                "arrayminus": [m - min(s.values) for s, m in zip(confirmed, means, strict=True)],
                "color": FRESH_SEEDS,
            },
            text=[f"trial {s.number}, {len(s.values)} fresh seeds" for s in confirmed],
            hovertemplate="%{text}: mean %{y:.3f}<extra></extra>",
        )
    if facts.winner is not None:
        seeds = facts.winner_seeds
        y = seeds.mean if seeds and seeds.mean is not None else facts.trial(facts.winner).value
        figure.add_annotation(x=facts.winner, y=y, text="winner", ax=40, ay=30, bgcolor="white")
    return finish(figure, 420, x="trial", y=facts.objective)


def rung_figure(facts: TypeFacts) -> go.Figure | None:
    """Per epoch, the trials that reached it: gone on, or ended there and how."""
    rungs = facts.rungs()
    if not rungs:
        return None
    epochs = [rung.epoch for rung in rungs]
    hover = "epoch %{x}: %{y} %{fullData.name}<extra></extra>"
    figure = go.Figure(layout={"barmode": "stack", "bargap": 0.15})
    went_on = [rung.went_on for rung in rungs]
    figure.add_bar(x=epochs, y=went_on, name="went on", marker_color=WENT_ON, hovertemplate=hover)
    for state, (color, _) in STATE_STYLES.items():
        ended = [rung.ended.get(state, 0) for rung in rungs]
        if any(ended):
            figure.add_bar(x=epochs, y=ended, name=state, marker_color=color, hovertemplate=hover)
    figure.update_xaxes(dtick=1 if len(epochs) <= 20 else 5)
    return finish(figure, 330, x="epoch", y="trials that reached it")


def pareto_figure(facts: TypeFacts) -> go.Figure | None:
    """Complete trials by both objectives, and the line of those that none beats in both."""
    front = facts.pareto_front()
    if not front:
        return None
    on_front = {trial.number for trial in front}
    figure = go.Figure()
    figure.add_scatter(
        x=[trial.second for trial in front],
        y=[trial.value for trial in front],
        mode="lines",
        line={"color": BEST_SO_FAR, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    for is_front in (False, True):
        trials = [
            trial
            for trial in facts.of_state("complete")
            if trial.second is not None and (trial.number in on_front) == is_front
        ]
        figure.add_scatter(
            x=[trial.second for trial in trials],
            y=[trial.value for trial in trials],
            text=[_hover(trial) for trial in trials],
            mode="markers",
            marker=marker("complete") | {"size": 10 if is_front else 7},
            opacity=1.0 if is_front else 0.4,
            hovertemplate="%{text}<br>%{x:.4g}<extra></extra>",
        )
    figure.update_xaxes(exponentformat="SI")
    return finish(figure, 380, x=f"{facts.second_objective} (less is better)", y=facts.objective)


def per_id_figure(per_id: Sequence[Mapping[str, Any]], expected: float | None) -> go.Figure | None:
    """Test AUC of each machine id with its interval.

    Args:
        per_id: As `outcome["test_per_id"]` of a study; ids without an AUC are left out.
        expected: Their mean, drawn as a line.
    """
    known = [row for row in per_id if row["auc"] is not None][::-1]
    if not known:
        return None
    figure = go.Figure()
    figure.add_scatter(
        x=[row["auc"] for row in known],
        y=[row["machine_id"] for row in known],
        mode="markers",
        marker={"color": FRESH_SEEDS, "symbol": "diamond", "size": 10},
        error_x={
            "array": [row["ci"][1] - row["auc"] for row in known],
            "arrayminus": [row["auc"] - row["ci"][0] for row in known],
            "color": FRESH_SEEDS,
        },
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    above = {"annotation_position": "top", "annotation_font_size": 11}
    figure.add_vline(x=0.5, line_dash="dot", line_color="#888", annotation_text="chance", **above)
    if expected is not None:
        figure.add_vline(x=expected, line_color="#888", annotation_text="mean", **above)
    low = min([0.45, *(row["ci"][0] - 0.02 for row in known)])
    figure.update_xaxes(range=[low, 1.02])
    figure.update_yaxes(type="category")
    return finish(figure, 130 + 36 * len(known), x="test AUC, 95 % interval", y="")


def cost_figure(facts: TypeFacts) -> go.Figure | None:
    """What the trials of each state cost; in epochs where no time is recorded."""
    states = [state for state in STATE_STYLES if any(t.epochs for t in facts.of_state(state))][::-1]
    if not states:
        return None
    costs = [facts.cost(facts.of_state(state)) for state in states]
    if any(cost is not None for cost in costs):
        unit, values = facts.cost_unit, [cost or 0.0 for cost in costs]
    else:
        unit = "epochs"
        values = [float(sum(t.epochs for t in facts.of_state(state))) for state in states]
    figure = go.Figure(
        go.Bar(
            x=values,
            y=states,
            orientation="h",
            marker_color=[STATE_STYLES[state][0] for state in states],
            text=[f"{value:.3g}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    return finish(figure, 130 + 36 * len(states), x=unit, y="")


def marker(state: str) -> dict[str, Any]:
    """Plotly's marker of a trial in a state."""
    color, symbol = STATE_STYLES[state]
    return {"color": color, "symbol": symbol, "size": 9, "line": {"width": 1.6, "color": color}}


def _hover(trial: TrialFacts) -> str:
    value = "none" if trial.value is None else f"{trial.value:.3f}"
    lines = [f"<b>trial {trial.number}</b>, {trial.state} after {trial.epochs} epochs: {value}"]
    lines += [f"{name} {shown(trial.params[name])}" for name in trial.distributions]
    return "<br>".join(lines)


def shown(value: Any) -> str:
    """The value of a parameter for people."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def finish(
    figure: go.Figure, height: int, x: str = "", y: str = "", margin: dict[str, int] | None = None
) -> go.Figure:
    """The common look: as wide as its place, no legend of its own."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        showlegend=False,
        margin=margin or {"l": 60, "r": 30, "t": 24, "b": 45},
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#222"},
        hoverlabel={"align": "left"},
    )
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, ticklabelstandoff=6)
    return figure
