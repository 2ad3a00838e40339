"""What samplers see of a study."""

from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_info, threadpool_limits

from search.config import SamplerConfig
from search.samplers import LARGE, build_sampler
from search.space import Space, neutral
from search.studies import TypeStudy
from search.views import View
from tests.doubles import space_file
from tests.study_fixtures import new_study

PARAMETERS: dict[str, Any] = {
    "network.attention": {"kind": "bool"},
    "network.attention_expansion": {
        "kind": "int",
        "low": 2,
        "high": 10,
        "when": {"network.attention": True},
    },
    "augment.noise_p": {
        "kind": "float",
        "low": 0.0,
        "high": 1.0,
        "when": {"network.attention": False},
    },
    "train.lr": {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True},
}
SPACE = space_file(parameters=PARAMETERS)


class Spy(BaseSampler):
    """Draws at random and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: Sequence[FrozenTrial] = ()
        self._random = RandomSampler(seed=0)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self.seen = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        return {}

    def sample_relative(self, *args: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, *args: Any) -> Any:
        return self._random.sample_independent(*args)


def shown(study: TypeStudy, whole: bool, view: View | None = None) -> Sequence[FrozenTrial]:
    spy = Spy()
    view = view or View(Space(SPACE.parameters))
    view.draw(spy, study.trials(), whole=whole)
    return spy.seen


@pytest.fixture
def study() -> TypeStudy:
    """Three complete trials that gain .1, .2 and .4 after the first epoch, then a pruned one."""
    study = new_study(space=SPACE)
    for start, end in ((0.5, 0.6), (0.5, 0.7), (0.4, 0.8)):
        number = study.ask().number
        study.record_epoch(number, 1, {}, start)
        study.record_epoch(number, 2, {}, end)
        study.finish(number, TrialState.COMPLETE, value=end)
    number = study.ask().number
    study.record_epoch(number, 1, {}, 0.3)
    study.finish(number, TrialState.PRUNED)
    study.ask()
    return study


def test_a_whole_trial_has_every_parameter(study: TypeStudy) -> None:
    names = {name for name in PARAMETERS}
    inactive = {"network.attention_expansion": 6, "augment.noise_p": 0.5}
    for trial, stored in zip(shown(study, whole=True), study.trials(), strict=True):
        assert trial.params.keys() == trial.distributions.keys() == names
        for name in names:
            assert trial.params[name] == stored.params.get(name, inactive.get(name))
    for trial, stored in zip(shown(study, whole=False), study.trials(), strict=True):
        assert trial.params == stored.params


def test_a_pruned_trial_is_worth_what_others_gained_from_its_epoch_on(study: TypeStudy) -> None:
    *_, pruned, running = shown(study, whole=True)
    assert pruned.state == TrialState.COMPLETE
    assert pruned.value == pytest.approx(0.3 + 0.2)  # the median
    assert running.state == TrialState.RUNNING
    *_, pruned, _ = shown(study, whole=False)
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {1: 0.3})


def test_nothing_is_made_up_where_no_complete_trial_tells() -> None:
    study = new_study(space=SPACE)
    number = study.ask().number
    study.record_epoch(number, 1, {}, 0.3)
    study.finish(number, TrialState.PRUNED)
    (pruned,) = shown(study, whole=True)
    assert pruned.state == TrialState.PRUNED


def test_a_failed_trial_is_as_bad_as_any_to_who_would_overlook_it(study: TypeStudy) -> None:
    number = study.ask().number
    study.record_epoch(number, 1, {}, 0.7)  # good, until its loss is not finite
    study.finish(number, TrialState.FAIL, reason="non-finite: in epoch 2")
    failed = shown(study, whole=True)[number]
    assert (failed.state, failed.value) == (TrialState.COMPLETE, 0.6)
    failed = shown(study, whole=False)[number]
    assert (failed.state, failed.values) == (TrialState.FAIL, None)


def test_a_trial_that_runs_out_of_memory_after_a_pause_breaks_its_constraint(
    study: TypeStudy,
) -> None:
    number, view = study.ask().number, View(Space(SPACE.parameters))
    study.record_epoch(number, 1, {}, 0.7)
    study.pause(number)
    assert shown(study, whole=True, view=view)[number].constraints == {}
    study.go_on(number)
    study.finish_out_of_memory(number, "out of memory")
    assert shown(study, whole=True, view=view)[number].constraints == {"memory": 1.0}


def test_a_trial_that_ran_out_of_memory_and_is_tried_again_is_shown_as_it_ends(
    study: TypeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = study.ask().number
    with monkeypatch.context() as killed:
        killed.setattr(study, "finish", lambda *args, **options: None)
        study.finish_out_of_memory(number, "out of memory")
    study.resume(number)
    study.record_epoch(number, 1, {}, 0.9)
    study.finish(number, TrialState.COMPLETE, value=0.9)
    assert shown(study, whole=False)[number].value == 0.9
    assert study.best().number == number


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("train.lr", {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True}, 1e-3),
        ("augment.noise_p", {"kind": "float", "low": 0.0, "high": 1.0, "step": 0.25}, 0.5),
        ("network.channels", {"kind": "int", "low": 1, "high": 100, "log": True}, 10),
        ("network.channels", {"kind": "int", "low": 4, "high": 16, "step": 4}, 12),
        ("augment.mask", {"kind": "bool"}, False),
    ],
)
def test_a_neutral_value_lies_in_the_middle(
    name: str, parameter: dict[str, Any], value: Any
) -> None:
    assert neutral(space_file(parameters={name: parameter}).parameters[name]) == pytest.approx(
        value
    )


def test_auto_leaves_the_gaussian_process_when_a_study_is_large() -> None:
    names = [
        type(build_sampler(SamplerConfig(), seed=0, n_trials=n)[0]).__name__
        for n in (0, LARGE - 1, LARGE)
    ]
    assert names == ["GPSampler", "GPSampler", "TPESampler"]


def test_the_gaussian_process_models_conditional_parameters() -> None:
    """Only with attention, and only with a small expansion, is a trial good."""
    study = new_study(space=SPACE, sampler=SamplerConfig(name="gp"))
    late = []
    for number in range(30):
        params = study.ask().params
        value = 0.0
        if params["network.attention"]:
            value = 1 - params["network.attention_expansion"] / 10
        study.finish(number, TrialState.COMPLETE, value=value)
        late.append(value)
    assert sorted(late[15:])[7] >= 0.7  # half of the later ones are near the best, .8


class CountsThreads(Spy):
    """Keeps how many threads the libraries of linear algebra would take for a suggestion."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self.threads = {pool["num_threads"] for pool in threadpool_info()}
        return {}


def test_a_suggestion_takes_one_thread() -> None:
    """Beside trials that keep all cores busy, further threads made it 20 to 40 times slower."""
    sampler = CountsThreads()
    with threadpool_limits(2):
        View(Space(SPACE.parameters)).draw(sampler, [])
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}  # as it was before
    assert sampler.threads == {1}
