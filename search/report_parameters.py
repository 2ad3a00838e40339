"""What the parameters of a study did: their importance, slices and parallel coordinates."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from search.report_facts import TrialFacts, TypeFacts
from search.report_figures import STATE_STYLES, finish, marker, shown

MIN_FOR_IMPORTANCE = 10  # complete trials; of fewer, the best tenth is hardly one
_MOST_AXES = 8  # of the parallel coordinates; more cannot be read
_MOST_BARS = 12  # of the importance; the table has them all
_MOST_TICKS = 8  # integers under a slice
_COLUMNS = 4  # slices side by side
_LOW_TO_HIGH = ["#5b8fc9", "#0b2b57"]  # lines by their objective; both to be seen on white


class Importance(NamedTuple):
    """Share of each parameter, highest first, and Optuna's doubts."""

    shares: Mapping[str, float]
    doubts: tuple[str, ...]


def importance_of(facts: TypeFacts) -> Importance | None:
    """Optuna's default evaluator; None with fewer than MIN_FOR_IMPORTANCE complete trials."""
    study = _complete_study(facts)
    is_searched = any(trial.params for trial in study.trials)
    if len(study.trials) < MIN_FOR_IMPORTANCE or not is_searched:
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shares = optuna.importance.get_param_importances(study)
    doubts = dict.fromkeys(str(warning.message) for warning in caught)
    return Importance(shares=shares, doubts=tuple(doubts))


def importance_figure(importance: Importance) -> go.Figure:
    """Share of the most important parameters as bars."""
    names = list(importance.shares)[:_MOST_BARS][::-1]
    shares = [importance.shares[name] for name in names]
    figure = go.Figure(
        go.Bar(
            x=shares,
            y=names,
            orientation="h",
            marker_color=STATE_STYLES["complete"][0],
            text=[f"{share:.2f}" for share in shares],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    return finish(figure, 90 + 24 * len(names), x="share of the importance", y="")


def slice_figure(facts: TypeFacts, importance: Importance | None) -> go.Figure | None:
    """Objective against each parameter that was varied, the most important first."""
    trials = [t for t in facts.of_state("complete", "pruned") if t.value is not None]
    names = varied(trials, importance)
    if not names:
        return None
    n_rows = -(-len(names) // _COLUMNS)
    figure = make_subplots(
        rows=n_rows,
        cols=_COLUMNS,
        shared_yaxes=True,
        subplot_titles=names,
        horizontal_spacing=0.045,
        vertical_spacing=0.26 / n_rows,
    )
    for index, name in enumerate(names):
        place = {"row": index // _COLUMNS + 1, "col": index % _COLUMNS + 1}
        mine = [trial for trial in trials if name in trial.params]
        distribution = _joined(trials, name)
        is_categorical = isinstance(distribution, CategoricalDistribution)
        for state in ("pruned", "complete"):
            of_state = [trial for trial in mine if trial.state == state]
            values = [trial.params[name] for trial in of_state]
            figure.add_scatter(
                x=[shown(value) for value in values] if is_categorical else values,
                y=[trial.value for trial in of_state],
                text=[f"trial {trial.number}" for trial in of_state],
                mode="markers",
                marker=marker(state) | {"size": 7},
                opacity=0.6,
                hovertemplate="%{text}: %{x}, %{y:.3f}<extra></extra>",
                **place,
            )
        figure.update_xaxes(**_axis(distribution), **place)
    figure.update_annotations(font_size=12)
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(title_text=facts.objective, title_standoff=8, col=1)
    return finish(figure, 40 + 215 * n_rows)


def parallel_figure(facts: TypeFacts, importance: Importance | None) -> go.Figure | None:
    """Complete trials as lines across their parameters, by Optuna."""
    complete = facts.of_state("complete")
    names = varied(complete, importance)[:_MOST_AXES]
    # Optuna judges an axis by one of the trials, and fails where the others do not fit it.
    study = _complete_study(facts, {name: _joined(complete, name) for name in names})
    if len(study.trials) < 2 or not names:
        return None
    figure = optuna.visualization.plot_parallel_coordinate(
        study, params=names, target_name=facts.objective
    )
    # Optuna draws the lowest values in white. Its first axis is the objective, from 0 to 1.
    figure.for_each_trace(
        lambda line: line.update(
            line_color=sample_colorscale(_LOW_TO_HIGH, line.y[0])[0], line_width=1.8
        ),
        selector={"mode": "lines"},
    )
    figure.update_traces(marker_colorscale=_LOW_TO_HIGH, selector={"mode": "markers"})
    # It cuts names to 17 characters as well.
    labels = [facts.objective, *(name.replace(".", ".<br>") for name in sorted(names))]
    assert len(labels) == len(figure.layout.xaxis.ticktext)
    figure.update_xaxes(ticktext=labels, tickangle=0, tickfont_size=11)
    figure.update_layout(title=None)
    figure.update_traces(opacity=0.9)
    return finish(figure, 400, margin={"l": 60, "r": 30, "t": 20, "b": 50})


def tried_values(facts: TypeFacts) -> dict[str, str]:
    """Of each parameter that was searched, what trials had: a range, or the choices."""
    return {name: _range(found) for name, found in _values(facts.trials).items()}


def _complete_study(
    facts: TypeFacts, joined: Mapping[str, BaseDistribution] | None = None
) -> optuna.Study:
    """The complete trials as a study of their own, with one objective, for Optuna's functions.

    Args:
        facts: Of the study.
        joined: Distributions that take the place of each trial's own, and give it one where the
            parameter was fixed: each of them holds all earlier trials.
    """
    study = optuna.create_study(direction="maximize")
    for trial in facts.of_state("complete"):
        distributions = dict(trial.distributions)
        distributions |= {n: d for n, d in (joined or {}).items() if n in trial.params}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=trial.value,
                params={name: trial.params[name] for name in distributions},
                distributions=distributions,
            )
        )
    return study


def varied(trials: Sequence[TrialFacts], importance: Importance | None) -> list[str]:
    """Parameters that differ among trials: by importance if known, else in the space's order."""
    values = _values(trials)
    ranks = {name: rank for rank, name in enumerate(importance.shares)} if importance else {}
    varied = [name for name in values if len(set(values[name])) > 1]
    return sorted(varied, key=lambda name: ranks.get(name, len(ranks)))


def _values(trials: Sequence[TrialFacts]) -> dict[str, list[Any]]:
    """What trials had of each parameter that any of them searched; in others it may be fixed."""
    searched = dict.fromkeys(name for trial in trials for name in trial.distributions)
    return {
        name: [trial.params[name] for trial in trials if name in trial.params] for name in searched
    }


def _joined(trials: Sequence[TrialFacts], name: str) -> BaseDistribution:
    """All that could be suggested for a parameter in any of the trials, at least one.

    They may differ even in its kind: a space may change that holds every earlier trial.
    """
    mine = [trial for trial in trials if name in trial.distributions]
    distributions = [trial.distributions[name] for trial in mine]
    if any(isinstance(d, CategoricalDistribution) for d in distributions):
        choices: dict[Any, None] = {}
        for trial, distribution in zip(mine, distributions, strict=True):
            if isinstance(distribution, CategoricalDistribution):
                choices |= dict.fromkeys(distribution.choices)
            else:  # what it held cannot be listed
                choices[trial.params[name]] = None
        is_ordered = all(type(choice) in (int, float) for choice in choices)
        return CategoricalDistribution(sorted(choices) if is_ordered else list(choices))
    numbers = [d for d in distributions if isinstance(d, (FloatDistribution, IntDistribution))]
    low, high = min(d.low for d in numbers), max(d.high for d in numbers)
    is_log = all(d.log for d in numbers)
    integers = [d for d in numbers if isinstance(d, IntDistribution)]
    if len(integers) < len(numbers):
        return FloatDistribution(low, high, log=is_log)
    step = math.gcd(*(n for d in integers for n in (d.step, int(d.low - low))))
    return IntDistribution(int(low), int(high), log=is_log, step=step)


def _axis(distribution: BaseDistribution) -> dict[str, Any]:
    """Plotly's axis over all that a distribution holds."""
    if isinstance(distribution, CategoricalDistribution):
        choices = [shown(choice) for choice in distribution.choices]
        return {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": choices,
            "range": [-0.4, len(choices) - 0.6],
        }
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = distribution.low, distribution.high
    if distribution.log:
        ticks = _log_ticks(low, high)
        edge = 0.04 * math.log10(high / low)
        span = [math.log10(low) - edge, math.log10(high) + edge]
        labels = [f"{tick:g}" for tick in ticks]
        return {"type": "log", "tickvals": ticks, "ticktext": labels, "range": span}
    edge = 0.04 * (high - low)
    axis: dict[str, Any] = {"range": [low - edge, high + edge]}
    if isinstance(distribution, IntDistribution):
        ticks_at = range(distribution.low, distribution.high + 1, distribution.step)
        if len(ticks_at) <= _MOST_TICKS:
            axis["tickvals"] = list(ticks_at)
    return axis


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the range; of a short one, also their doubles and fives."""
    steps = (1.0,) if high / low >= 30 else (1.0, 2.0, 5.0)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick * 1.0001 and tick <= high * 1.0001]


def _range(values: Sequence[Any]) -> str:
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return f"{shown(min(values))} to {shown(max(values))}"
    return ", ".join(sorted({shown(value) for value in values}))
