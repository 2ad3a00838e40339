"""Suggestions from a space with conditions."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.config import SamplerConfig, load_space
from search.space import DEFAULTS, Space, all_params, describe
from tests import study_fixtures
from tests.doubles import space_file

PARAMETERS: dict[str, Any] = {
    "network.attention": {"kind": "bool"},
    "network.attention_expansion": {
        "kind": "categorical",
        "choices": [2, 4],
        "when": {"network.attention": True},
    },
    "network.channels": {"kind": "int", "low": 4, "high": 12, "step": 4},
    "network.depth": {"kind": "fixed", "value": 4},
    "train.lr": {"kind": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "train.loss_weight_complex": {"kind": "float", "low": 0.0, "high": 1.0, "step": 0.25},
}


@pytest.fixture
def space() -> Space:
    return Space(space_file(parameters=PARAMETERS).parameters)


def new_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def test_a_parameter_is_suggested_only_while_its_condition_holds(space: Space) -> None:
    study = new_study()
    seen = []
    for _ in range(20):
        params = space.suggest(study.ask())
        assert ("network.attention_expansion" in params) == params["network.attention"]
        seen.append(params["network.attention"])
    assert set(seen) == {True, False}


def test_a_condition_on_an_inactive_parameter_does_not_hold() -> None:
    chain = {
        "augment.mask": {"kind": "fixed", "value": False},
        "augment.noise": {"kind": "bool", "when": {"augment.mask": False}},
        "augment.shift": {"kind": "bool", "when": {"augment.mask": False, "augment.noise": True}},
    }
    suggested = Space(space_file(parameters=chain).parameters)
    study = new_study()
    for _ in range(20):
        params = suggested.suggest(study.ask())
        assert ("augment.shift" in params) == params["augment.noise"]


def test_values_stay_in_their_ranges(space: Space) -> None:
    study = new_study()
    drawn = [space.suggest(study.ask()) for _ in range(60)]
    assert {params["network.channels"] for params in drawn} == {4, 8, 12}
    assert {params["train.loss_weight_complex"] for params in drawn} == {0, 0.25, 0.5, 0.75, 1}
    assert all(1e-4 <= params["train.lr"] <= 1e-1 for params in drawn)
    assert sum(params["train.lr"] < 1e-2 for params in drawn) > 30  # log: two decades of three
    assert all(params["network.depth"] == 4 for params in drawn)


def test_fixed_values_cost_the_sampler_nothing(space: Space) -> None:
    trial = new_study().ask()
    space.suggest(trial)
    assert "network.depth" not in trial.params


def test_what_is_inactive_has_its_default_in_all_that_a_space_holds(space: Space) -> None:
    """There it trains with the default, and with nothing else."""
    settings = {"network.attention": False, "network.channels": 8, "network.depth": 4}
    settings |= {"train.lr": 1e-3, "train.loss_weight_complex": 0.25}
    expansion = "network.attention_expansion"
    assert space.locate({**settings, expansion: DEFAULTS[expansion]}) == settings
    assert space.locate({**settings, expansion: 2}) is None
    assert space.locate({**settings, "network.attention": True, expansion: 2}) is not None


def test_whatever_a_space_suggests_it_holds(space: Space) -> None:
    study = new_study()
    for _ in range(20):
        params = space.suggest(study.ask())
        assert space.locate(params) == params


@pytest.mark.parametrize("value", [6.9e-18, 0.1, 0.30000000000000004 - 6e-17])
def test_a_step_is_as_exact_as_optuna_takes_it(value: float) -> None:
    name = "augment.noise_p"
    steps = {name: {"kind": "float", "low": 0.0, "high": 0.3, "step": 0.1}}
    space = Space(space_file(parameters=steps).parameters)
    assert space.locate({name: value}) is not None
    assert space.locate({name: value + 1e-3}) is None


@pytest.mark.parametrize(("high", "step"), [(0.3, 0.1), (0.6, 0.2)])
def test_what_the_gaussian_process_suggests_the_space_holds(high: float, step: float) -> None:
    rate = {"kind": "float", "low": 0.0, "high": high, "step": step}
    parameters = {"augment.noise_p": rate, "train.lr": PARAMETERS["train.lr"]}
    study = study_fixtures.new_study(
        space=space_file(parameters=parameters), sampler=SamplerConfig(name="gp")
    )
    for _ in range(12):
        trial = study.ask()
        assert trial is not None
        study.finish(
            trial.number, TrialState.COMPLETE, value=1 - all_params(trial)["augment.noise_p"]
        )


def test_a_choice_is_held_by_its_value_and_a_truth_is_no_number() -> None:
    name = "augment.noise_p"
    choices = {name: {"kind": "categorical", "choices": [0, 0.5]}}
    numbers = Space(space_file(parameters=choices).parameters)
    assert numbers.locate({name: 0.0}) == {name: 0}
    assert numbers.locate({name: 0.25}) is None
    assert numbers.locate({name: False}) is None


def test_asking_again_for_a_half_filled_trial_keeps_what_it_has(space: Space) -> None:
    study = new_study()
    trial = study.ask()
    Space(dict(list(space.parameters.items())[:3])).suggest(trial)
    before = dict(trial.params)
    assert 0 < len(before) < 5

    study.sampler = optuna.samplers.RandomSampler(seed=99)
    again = optuna.Trial(study, trial._trial_id)
    params = space.suggest(again)
    assert before.items() <= params.items()
    assert space.suggest(optuna.Trial(study, trial._trial_id)) == params
    assert study.trials[0].state == TrialState.RUNNING


@pytest.mark.parametrize("path", sorted(Path("spaces").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_in_spaces_can_be_drawn_from(path: Path) -> None:
    space = Space(load_space(path).parameters)
    study = new_study()
    for _ in range(5):
        params = space.suggest(study.ask())
        assert list(params) == [name for name in space.parameters if name in params]


def test_a_description_names_kind_range_and_condition(space: Space) -> None:
    lines = {name: describe(parameter) for name, parameter in space.parameters.items()}
    assert lines["network.attention"] == "true or false"
    assert lines["network.attention_expansion"] == "one of 2, 4, when network.attention is True"
    assert lines["network.channels"] == "int 4 .. 12 step 4"
    assert lines["network.depth"] == "fixed 4"
    assert lines["train.lr"] == "float 0.0001 .. 0.1 log"
