"""Figures show what the facts say, in the signs that the page explains."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import create_trial
from plotly.colors import unlabel_rgb

from search import report_figures as figures
from search import report_parameters as parameters
from search.report_facts import TypeFacts
from tests.report_fixtures import OUTCOME, ask, facts_of, fill, make_full_study, make_study, run


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> TypeFacts:
    folder = tmp_path_factory.mktemp("full") / "s"
    make_full_study(folder)
    return facts_of(folder)


def symbols(figure: Any) -> dict[str, list[int]]:
    """Sign of a marker -> trials that have it."""
    return {trace.marker.symbol: list(trace.x) for trace in figure.data if trace.mode == "markers"}


def test_history_tells_pruned_trials_from_complete_ones(full: TypeFacts) -> None:
    figure = figures.history_figure(full)
    assert figure is not None
    found = symbols(figure)
    for state in ("complete", "pruned", "failed", "running"):
        numbers = [trial.number for trial in full.of_state(state)]
        assert found[figures.STATE_STYLES[state][1]] == numbers
    pruned = next(t for t in figure.data if t.marker.symbol == "triangle-down-open")
    assert list(pruned.y) == [trial.value for trial in full.of_state("pruned")]


def test_the_best_so_far_only_rises_and_only_with_complete_trials(full: TypeFacts) -> None:
    figure = figures.history_figure(full)
    assert figure is not None
    (line,) = [trace for trace in figure.data if trace.mode == "lines"]
    values = [t.value for t in full.of_state("complete") if t.value is not None]
    assert sorted(set(line.y)) == sorted(set(np.maximum.accumulate(values)))
    assert list(line.y) == sorted(line.y)
    assert line.x[-1] == full.trials[-1].number


def test_fresh_seeds_reach_from_the_lowest_to_the_highest(full: TypeFacts) -> None:
    figure = figures.history_figure(full)
    assert figure is not None
    (seeds,) = [trace for trace in figure.data if trace.marker.symbol == "diamond"]
    position = list(seeds.x).index(full.winner)
    expected = full.seeds(int(full.winner or 0))
    assert expected is not None
    assert seeds.y[position] == expected.mean
    assert seeds.y[position] + seeds.error_y.array[position] == max(expected.values)
    assert seeds.y[position] - seeds.error_y.arrayminus[position] == min(expected.values)


def test_the_bars_of_an_epoch_add_up_to_those_who_reached_it(full: TypeFacts) -> None:
    figure = figures.rung_figure(full)
    assert figure is not None
    total = np.sum([trace.y for trace in figure.data], axis=0)
    assert total.tolist() == [rung.reached for rung in full.rungs()]


def test_no_figure_has_a_legend_of_its_own(full: TypeFacts) -> None:
    importance = parameters.importance_of(full)
    assert importance is not None
    drawn = [
        figures.history_figure(full),
        figures.rung_figure(full),
        figures.cost_figure(full),
        figures.pareto_figure(full),
        figures.per_id_figure(full.outcome["test_per_id"], 0.8),
        parameters.importance_figure(importance),
        parameters.slice_figure(full, importance),
        parameters.parallel_figure(full, importance),
    ]
    for figure in drawn:
        assert figure is not None
        assert figure.layout.showlegend is False
        assert figure.layout.width is None  # as wide as its place on the page


def test_too_few_complete_trials_have_no_importance(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for n in range(parameters.MIN_FOR_IMPORTANCE):
        assert parameters.importance_of(facts_of(tmp_path / "s")) is None, n
        study.tell(ask(study).number, 0.5 + n / 100)
    importance = parameters.importance_of(facts_of(tmp_path / "s"))
    assert importance is not None
    assert sum(importance.shares.values()) == pytest.approx(1.0)


def test_optuna_s_doubts_are_passed_on(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    distribution = CategoricalDistribution([False, True])
    for n in range(parameters.MIN_FOR_IMPORTANCE + 1):
        trial = create_trial(params={"a": n > 0}, distributions={"a": distribution}, value=n / 20)
        if n == 0:  # alone in its regime: all others have one more parameter
            study.add_trial(trial)
            continue
        more = {"b": optuna.distributions.FloatDistribution(0.0, 1.0)}
        study.add_trial(
            create_trial(
                params={"a": True, "b": n / 20},
                distributions={"a": distribution, **more},
                value=n / 20,
            )
        )
    importance = parameters.importance_of(facts_of(tmp_path / "s"))
    assert importance is not None
    assert any("`b`" in doubt for doubt in importance.doubts)


def test_slices_span_the_space_and_lead_with_what_matters(full: TypeFacts) -> None:
    importance = parameters.importance_of(full)
    figure = parameters.slice_figure(full, importance)
    assert importance is not None
    assert figure is not None
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == list(importance.shares)
    axis = figure.layout[f"xaxis{titles.index('train.lr') + 1}"]
    assert axis.type == "log"
    assert axis.range[0] == pytest.approx(-4, abs=0.2)
    assert axis.range[1] == pytest.approx(-1, abs=0.2)
    assert list(axis.tickvals) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    channels = figure.layout[f"xaxis{titles.index('network.channels') + 1}"]
    assert list(channels.tickvals) == [15, 30, 45]


def test_a_widened_choice_has_one_axis_with_all_choices(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for n, choices in enumerate([["a"], ["a", "b"], ["a", "b"], ["a", "b", "c"]]):
        distribution = CategoricalDistribution(choices)
        trial = create_trial(
            params={"kind": choices[-1]}, distributions={"kind": distribution}, value=0.5 + n / 10
        )
        study._storage.create_new_trial(study._study_id, template_trial=trial)
    facts = facts_of(tmp_path / "s")
    figure = parameters.slice_figure(facts, None)
    assert figure is not None
    assert list(figure.layout.xaxis.categoryarray) == ["a", "b", "c"]
    assert parameters.parallel_figure(facts, None) is not None
    assert parameters.tried_values(facts) == {"kind": "a, b, c"}


def read_changed(folder: Path, *parts: tuple[BaseDistribution, list[Any]]) -> TypeFacts:
    """A study whose parameter `x` had one distribution after another, with the values it took."""
    study = make_study(folder)
    tried = [(distribution, value) for distribution, values in parts for value in values]
    for n, (distribution, value) in enumerate(tried):
        trial = create_trial(
            params={"x": value}, distributions={"x": distribution}, value=0.5 + n / 100
        )
        study._storage.create_new_trial(study._study_id, template_trial=trial)
    return facts_of(folder)


CHOICES = (CategoricalDistribution([16, 32]), [16, 32] * 3)
RANGE = (IntDistribution(16, 64, step=16), [48, 64] * 3)
LOG = (FloatDistribution(1e-5, 1e-2, log=True), [1e-5, 1e-3] * 3)
FROM_0 = (FloatDistribution(0.0, 1e-2), [0.0, 5e-3] * 3)
MIXED = (CategoricalDistribution([16, 32, "all"]), ["all", 16] * 3)


@pytest.mark.parametrize(
    "parts",
    [(CHOICES, RANGE), (RANGE, CHOICES), (LOG, FROM_0), (FROM_0, LOG), (CHOICES, MIXED)],
    ids=["choices-range", "range-choices", "log-linear", "linear-log", "numbers-words"],
)
def test_a_parameter_may_have_changed_its_kind(
    tmp_path: Path, parts: tuple[tuple[BaseDistribution, list[Any]], ...]
) -> None:
    facts = read_changed(tmp_path / "s", *parts)
    importance = parameters.importance_of(facts)
    assert importance is not None
    slices = parameters.slice_figure(facts, importance)
    assert slices is not None
    if any(isinstance(distribution, CategoricalDistribution) for distribution, _ in parts):
        values = {trial.params["x"] for trial in facts.trials} | {16, 32}  # tried, or a choice
        ordered = sorted(values, key=lambda value: (str(value).isalpha(), value))
        assert list(slices.layout.xaxis.categoryarray) == [str(value) for value in ordered]
    else:
        assert slices.layout.xaxis.type != "log"
        assert slices.layout.xaxis.range[0] <= 0.0
    assert parameters.parallel_figure(facts, importance) is not None


def test_a_parameter_that_was_fixed_before_keeps_its_value(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for n in range(6):
        trial = study.ask()
        if n < 3:
            trial.set_user_attr("fixed", {"x": 4})
        else:
            trial.suggest_int("x", 3, 6)
        study.tell(trial.number, 0.5 + n / 100)
    facts = facts_of(tmp_path / "s")
    values = [trial.params["x"] for trial in facts.trials]
    figure = parameters.parallel_figure(facts, None)
    assert figure is not None
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [list(line.customdata[1]) for line in lines] == [["x", str(v)] for v in values]
    assert parameters.tried_values(facts) == {"x": f"{min(values)} to {max(values)}"}


def test_parameters_that_were_searched_late_have_an_importance(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for n in range(30):
        trial = study.ask()
        if n == 0:
            trial.set_user_attr("fixed", {"x": 4})
        else:
            trial.suggest_int("x", 3, 6)
        study.tell(trial.number, 0.5 + n / 100)
    importance = parameters.importance_of(facts_of(tmp_path / "s"))
    assert importance is not None
    assert list(importance.shares) == ["x"]


def test_a_finer_step_has_its_ticks(tmp_path: Path) -> None:
    facts = read_changed(tmp_path / "s", RANGE, (IntDistribution(8, 64, step=8), [8, 24]))
    figure = parameters.slice_figure(facts, None)
    assert figure is not None
    assert list(figure.layout.xaxis.tickvals) == [8, 16, 24, 32, 40, 48, 56, 64]


def test_every_line_of_the_parallel_coordinates_is_seen_on_white(full: TypeFacts) -> None:
    figure = parameters.parallel_figure(full, None)
    assert figure is not None
    assert figure.layout.plot_bgcolor == "white"
    colors = [trace.line.color for trace in figure.data if trace.mode == "lines"]
    assert len(colors) == len(full.of_state("complete"))
    for color in colors:
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in unlabel_rgb(color)]
        luminance = np.dot(linear, [0.2126, 0.7152, 0.0722])
        assert 1.05 / (luminance + 0.05) >= 3  # WCAG 2.2, 1.4.11


def test_parallel_coordinates_show_whole_names_of_few_parameters(full: TypeFacts) -> None:
    figure = parameters.parallel_figure(full, None)
    assert figure is not None
    labels = [label.replace("<br>", "") for label in figure.layout.xaxis.ticktext]
    assert labels[0] == "val_auc"
    assert "frontend.normalization" in labels
    assert len(labels) <= 9


def test_ids_without_an_auc_are_left_out(full: TypeFacts) -> None:
    figure = figures.per_id_figure(OUTCOME["test_per_id"], 0.8)  # type: ignore[arg-type]
    assert figure is not None
    assert list(figure.data[0].y) == ["id_02", "id_00"]
    assert figures.per_id_figure([], None) is None


def test_without_times_the_cost_is_drawn_in_epochs(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for epochs in (3, 4):
        run(ask(study), 0.7, epochs, seconds=None)
    figure = figures.cost_figure(facts_of(tmp_path / "s"))
    assert figure is not None
    assert list(figure.data[0].x) == [7.0]
    assert figure.layout.xaxis.title.text == "epochs"


def test_the_pareto_line_passes_through_the_front(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", second_objective="cost")
    fill(study, 30)
    facts = facts_of(tmp_path / "s")
    figure = figures.pareto_figure(facts)
    assert figure is not None
    front = [(trial.second, trial.value) for trial in facts.pareto_front()]
    assert list(zip(figure.data[0].x, figure.data[0].y, strict=True)) == front


def test_a_study_without_trials_has_no_figures(tmp_path: Path) -> None:
    make_study(tmp_path / "s")
    facts = facts_of(tmp_path / "s")
    assert figures.history_figure(facts) is None
    assert figures.rung_figure(facts) is None
    assert figures.cost_figure(facts) is None
    assert figures.pareto_figure(facts) is None
    assert parameters.slice_figure(facts, None) is None
    assert parameters.parallel_figure(facts, None) is None
