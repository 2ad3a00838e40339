"""Searches in virtual time: workers stay busy, suggestions come late, rungs stop trials."""

import pytest
from optuna.trial import TrialState

from search.config import FloatParameter, SamplerConfig, SchedulerConfig
from search.space import Params, Space
from tests.bench.grid import Grid
from tests.bench.simulation import Step, simulate

SPACE = Space({"x": FloatParameter(kind="float", low=0.0, high=1.0)})
RANDOM = SamplerConfig(name="random")


def rising(params: Params, number: int) -> list[Step]:
    """Nine epochs of a second each, on a curve that tells from the start how good x is."""
    return [Step(epoch, params["x"] * epoch / 9, 1.0) for epoch in range(1, 10)]


@pytest.mark.parametrize(("workers", "seconds"), [(1, 54.0), (4, 18.0), (6, 9.0)])
def test_every_worker_is_busy_until_the_trials_run_out(workers: int, seconds: float) -> None:
    trials, reports = simulate(rising, SPACE, sampler=RANDOM, n_trials=6, epochs=9, workers=workers)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert [trial.value for trial in trials] == [trial.params["x"] for trial in trials]
    assert [report.number for report in reports if report.time_s == 1.0] == list(range(workers))
    assert (len(reports), reports[-1].time_s) == (54, seconds)


def test_a_trial_starts_when_a_worker_is_free_and_not_before() -> None:
    seconds = [5.0, 1.0, 2.0, 3.0]
    steps = {number: [Step(1, 0.5, duration)] for number, duration in enumerate(seconds)}
    _, reports = simulate(lambda _, n: steps[n], SPACE, sampler=RANDOM, n_trials=4, workers=2)
    assert [(r.number, r.time_s) for r in reports] == [(1, 1.0), (2, 3.0), (0, 5.0), (3, 6.0)]


def test_the_scheduler_stops_what_falls_behind() -> None:
    scheduler = SchedulerConfig(name="asha", reduction_factor=3)
    trials, reports = simulate(
        rising, SPACE, sampler=RANDOM, scheduler=scheduler, n_trials=30, epochs=9
    )
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert len(complete) + len(pruned) == 30
    assert len(pruned) > 15
    assert max(trials, key=lambda trial: trial.params["x"]) in complete
    assert len(reports) == sum(len(trial.intermediate_values) for trial in trials) < 30 * 9


def test_a_training_that_fails_ends_its_trial_alone() -> None:
    steps = [Step(1, 0.5, 1.0), Step(2, None, 1.0)]
    trials, reports = simulate(lambda *_: steps, SPACE, sampler=RANDOM, n_trials=2, epochs=9)
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 2
    assert [trial.intermediate_values for trial in trials] == [{1: 0.5}] * 2
    assert "epoch 2" in trials[0].user_attrs["reason"]
    assert reports[-1].time_s == 4.0


def test_a_search_is_repeated_by_its_seed() -> None:
    def params(seed: int) -> list[Params]:
        arguments = {"sampler": SamplerConfig(startup_trials=2), "workers": 2, "seed": seed}
        trials, _ = simulate(rising, SPACE, n_trials=6, epochs=9, **arguments)
        return [trial.params for trial in trials]

    assert params(1) == params(1) != params(2)


def test_a_grid_is_searched_by_places_and_choices() -> None:
    grid = Grid({"rate": [0.1, 1.0, 10.0], "on": [False, True], "kind": ["a", "b"]})
    seen = set()

    def replay(params: Params, number: int) -> list[Step]:
        seen.add(grid.places(params))
        return [Step(1, 0.5, 1.0)]

    simulate(replay, grid.space, sampler=RANDOM, n_trials=100)
    assert len(seen) == 12
    assert min(seen) == (0, 0, 0)
    assert max(seen) == (2, 1, 1)
