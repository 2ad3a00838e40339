"""Which trials a study starts: offers, limits, grids, a second objective, and what is hidden."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search.config import SamplerConfig
from search.costs import excesses
from search.space import Params, all_params
from search.studies import Offer, StudyError, TypeStudy
from tests import study_fixtures
from tests.doubles import PARAMETERS, level_of, space_file

RANDOM, TPE = SamplerConfig(name="random"), SamplerConfig(name="tpe", startup_trials=3)
GRID = {
    "network.attention": {"kind": "bool"},
    "network.attention_expansion": {
        "kind": "categorical",
        "choices": [2, 4],
        "when": {"network.attention": True},
    },
    "network.channels": {"kind": "int", "low": 4, "high": 12, "step": 4},
}


def new_study(
    storage: InMemoryStorage | None = None,
    parameters: Mapping[str, Any] = PARAMETERS,
    sampler: SamplerConfig = TPE,
    **settings: Any,
) -> TypeStudy:
    space = space_file(parameters=dict(parameters))
    return study_fixtures.new_study(
        storage,
        space=space,
        sampler=sampler,
        identity={"parameters": space.model_dump(mode="json")["parameters"]},
        **settings,
    )


def complete(study: TypeStudy, trial: FrozenTrial, level: float | None = None) -> None:
    value = level_of(all_params(trial)) if level is None else level
    study.record_epoch(trial.number, 1, {}, value)
    study.finish(trial.number, TrialState.COMPLETE, value=value)


def drawn(study: TypeStudy, n: int, level: float | None = None) -> list[Params]:
    found = []
    for _ in range(n):
        trial = study.ask()
        found.append(all_params(trial))
        complete(study, trial, level)
    return found


def over(limit: float) -> Callable[[Params], dict[str, float]]:
    return lambda params: {"rate": params["train.lr"] / limit - 1}


@pytest.mark.parametrize("name", ["random", "tpe", "gp"])
def test_what_was_tried_is_not_tried_again_while_there_is_else(name: str) -> None:
    choices = [4, 8, 12, 16, 20]
    parameters = {"network.channels": {"kind": "categorical", "choices": choices}}
    sampler = SamplerConfig(name=name, startup_trials=2)
    study = new_study(parameters=parameters, sampler=sampler)
    levels = dict(zip(choices, (0.9, 0.1, 0.1, 0.1, 0.1), strict=True))  # nothing tempts away
    tried = []
    for _ in range(7):
        trial = study.ask()
        tried.append(all_params(trial)["network.channels"])
        complete(study, trial, levels[tried[-1]])
    assert sorted(tried[:5]) == choices
    assert set(tried[5:]) <= set(choices)


class TestOffers:
    FIRST: Params = {"train.lr": 1e-3, "network.attention": False, "network.depth": 4}
    SECOND: Params = {"train.lr": 1e-2, "network.attention": True, "network.depth": 4}

    def test_come_first_and_say_where_they_come_from(self) -> None:
        study = new_study(offers=lambda: [("paper", self.FIRST), ("champion", self.SECOND)])
        trials = [study.ask() for _ in range(3)]
        assert all_params(trials[0]) == self.FIRST
        assert all_params(trials[1]) == self.SECOND | {"network.attention_expansion": 4}  # default
        assert [t.user_attrs.get("origin") for t in trials] == ["paper", "champion", None]

    def test_outside_the_space_are_left_out_and_equal_ones_are_tried_once(self) -> None:
        outside = self.FIRST | {"train.lr": 1.0}
        unknown = self.FIRST | {"network.channels": 7}  # no parameter here, and not its default
        study = new_study(
            offers=lambda: [("a", outside), ("b", unknown), ("c", self.FIRST), ("d", self.FIRST)]
        )
        assert study.ask().user_attrs["origin"] == "c"
        assert "origin" not in study.ask().user_attrs

    def test_stay_those_of_the_first_run(self) -> None:
        storage = InMemoryStorage()
        new_study(storage, offers=lambda: [("paper", self.FIRST)])

        def again() -> list[Offer]:
            raise AssertionError("the study has noted its offers")

        study = new_study(storage, offers=again)
        assert study.ask().user_attrs["origin"] == "paper"
        assert "origin" not in study.ask().user_attrs

    @pytest.mark.parametrize(
        ("name", "changed", "second"),
        [
            ("train.lr", {"kind": "float", "low": 1e-4, "high": 5e-3, "log": True}, None),
            (
                "network.attention_expansion",
                {"kind": "categorical", "choices": [2], "when": {"network.attention": True}},
                None,
            ),
            (
                "train.weight_decay",
                {"kind": "float", "low": 0.0, "high": 0.1},
                {"network.attention_expansion": 4, "train.weight_decay": 0.0},  # the defaults
            ),
        ],
    )
    def test_are_those_that_a_changed_space_holds(
        self, name: str, changed: dict[str, Any], second: Params | None
    ) -> None:
        storage = InMemoryStorage()
        offers = [("paper", self.FIRST), ("champion", self.SECOND)]
        first = new_study(storage, offers=lambda: offers)
        complete(first, first.ask())
        study = new_study(storage, PARAMETERS | {name: changed})
        trial = study.ask()
        assert ("origin" in trial.user_attrs) == (second is not None)
        if second is not None:
            assert all_params(trial) == self.SECOND | second

    def test_too_dear_are_not_run(self) -> None:
        study = new_study(
            offers=lambda: [("dear", self.SECOND), ("paper", self.FIRST)], excesses=over(5e-3)
        )
        assert study.ask().user_attrs["origin"] == "paper"
        assert study.n_infeasible() == 1


class TestLimits:
    @pytest.mark.parametrize("name", ["random", "tpe", "gp", "cmaes", "nsgaii"])
    def test_no_trial_that_breaks_one_is_run(self, name: str) -> None:
        sampler = SamplerConfig.model_validate({"name": name, "startup_trials": 3})
        study = new_study(sampler=sampler, excesses=over(1e-2))
        assert all(params["train.lr"] <= 1e-2 for params in drawn(study, 12))
        assert len(study.trials()) == study.count("complete") == 12

    @pytest.mark.parametrize("name", ["auto", "tpe", "gp"])
    def test_limits_that_nothing_keeps_are_told_of(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.studies._MOST_INFEASIBLE", 15)
        sampler = SamplerConfig.model_validate({"name": name})
        study = new_study(sampler=sampler, excesses=lambda params: {"parameters": 1.0})
        with pytest.raises(StudyError, match="15 suggestions in a row break a limit"):
            study.ask()

    def test_the_sampler_is_told(self) -> None:
        """Two thirds of the range are forbidden; TPE comes to know, random draws cannot."""
        n_infeasible = {}
        for sampler in (RANDOM, TPE):
            study = new_study(sampler=sampler, excesses=over(1e-3))
            drawn(study, 30)
            n_infeasible[sampler.name] = study.n_infeasible()
        assert n_infeasible["tpe"] < n_infeasible["random"] / 2

    def test_what_was_not_run_is_stored_as_infeasible(self) -> None:
        storage = InMemoryStorage()
        study = new_study(storage, excesses=over(1e-3))
        drawn(study, 5)
        (stored,) = [storage.get_all_trials(s._study_id) for s in storage.get_all_studies()]
        skipped = [t for t in stored if t.user_attrs.get("reason", "").startswith("infeasible")]
        assert len(skipped) == study.n_infeasible() > 0
        for trial in skipped:
            assert trial.state == TrialState.PRUNED
            assert trial.constraints["rate"] == pytest.approx(trial.params["train.lr"] / 1e-3 - 1)
            assert trial.user_attrs["reason"].startswith("infeasible: exceeds rate by ")

    def test_settings_that_do_not_fit_together_are_told_by_their_rule(self) -> None:
        storage = InMemoryStorage()
        parameters = PARAMETERS | {"network.kind": {"kind": "fixed", "value": "autoencoder"}}
        study = new_study(storage, parameters, excesses=partial(excesses, {}, n_ids=2))
        with pytest.raises(StudyError, match=r"do not fit together .*frontend\.kind") as refused:
            study.ask()
        assert "raise it" not in str(refused.value)
        (stored,) = [storage.get_all_trials(s._study_id) for s in storage.get_all_studies()]
        assert "frontend.kind" in stored[0].user_attrs["reason"]

    def test_memory_that_did_not_suffice_is_one(self) -> None:
        """High rates run out of memory: booked as mere failures, they would be tried on and on."""
        n_lost = {}
        for is_told in (False, True):
            study = new_study(sampler=SamplerConfig(name="tpe", startup_trials=5))
            for _ in range(60):
                trial = study.ask()
                if trial.params["train.lr"] <= 1e-3:
                    complete(study, trial)
                elif is_told:
                    study.finish_out_of_memory(trial.number, "out of memory: 8 GiB")
                else:
                    study.finish(trial.number, TrialState.FAIL, reason="out of memory: 8 GiB")
            n_lost[is_told] = study.count("failed")
        assert n_lost[True] < n_lost[False] / 2


class TestGrid:
    def test_every_combination_once_and_no_more(self) -> None:
        study = new_study(parameters=GRID, sampler=SamplerConfig(name="grid"))
        found = drawn(study, 9, level=0.5)
        assert len({tuple(sorted(params.items())) for params in found}) == 9
        assert sum(params["network.attention"] for params in found) == 6
        assert study.is_exhausted
        assert study.ask() is None
        assert study.n_left(100) == 0

    def test_a_grid_of_steps_that_rounding_would_carry_too_far_ends_at_its_end(self) -> None:
        steps = {"kind": "float", "low": 0.0, "high": 0.3, "step": 0.1}  # 3 * 0.1 is above 0.3
        study = new_study(parameters={"augment.noise_p": steps}, sampler=SamplerConfig(name="grid"))
        found = [params["augment.noise_p"] for params in drawn(study, 4, level=0.5)]
        assert found == pytest.approx([0.0, 0.1, 0.2, 0.3])
        assert study.is_exhausted

    def test_a_widened_grid_tries_what_is_new_and_nothing_twice(self) -> None:
        """A further choice of the first parameter moves the places of all later combinations."""
        storage, grid = InMemoryStorage(), SamplerConfig(name="grid")
        parameters = {
            "network.attention": {"kind": "categorical", "choices": [False]},
            "network.channels": {"kind": "int", "low": 8, "high": 9},
        }
        drawn(new_study(storage, parameters=parameters, sampler=grid), 2, level=0.5)
        parameters["network.attention"] = {"kind": "categorical", "choices": [True, False]}
        study = new_study(storage, parameters=parameters, sampler=grid)
        found = [
            (p["network.attention"], p["network.channels"]) for p in drawn(study, 2, level=0.5)
        ]
        assert found == [(True, 8), (True, 9)]
        assert study.ask() is None

    def test_what_breaks_a_limit_is_passed_over(self) -> None:
        study = new_study(
            parameters=GRID,
            sampler=SamplerConfig(name="grid"),
            excesses=lambda params: {"channels": params["network.channels"] / 8 - 1},
        )
        assert len(drawn(study, 6, level=0.5)) == 6
        assert study.ask() is None


def test_a_second_objective_is_weighed() -> None:
    """The best level is at a rate of 10**-2.5, the cost grows with it: cheap trials come up."""
    medians = {}
    for name, cost in (("one", None), ("two", lambda params: params["train.lr"])):
        study = new_study(sampler=SamplerConfig(name="nsgaii"), cost=cost)
        study._sampler = SamplerConfig(name="tpe", startup_trials=5)
        rates = sorted(params["train.lr"] for params in drawn(study, 40)[15:])
        medians[name] = rates[len(rates) // 2]
    assert medians["two"] < medians["one"]


class TestLag:
    def test_a_trial_waits_for_those_it_is_to_know_of(self) -> None:
        study = new_study(lag=2)
        first, second = study.ask(), study.ask()
        assert not study.can_ask()
        complete(study, second)
        assert not study.can_ask()  # the third is to know of the first
        complete(study, first)
        assert study.can_ask()

    @pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "nsgaii"])
    def test_the_order_in_which_trials_end_changes_nothing(self, name: str) -> None:
        sampler = SamplerConfig.model_validate({"name": name, "startup_trials": 3})
        histories = []
        for late_first in (False, True):
            study, running, found = new_study(sampler=sampler, lag=3), [], []
            while len(found) < 15 or running:
                while len(running) < 3 and len(found) < 15 and study.can_ask():
                    running.append(study.ask())
                    found.append(all_params(running[-1]))
                complete(study, running.pop(-1 if late_first else 0))
            histories.append(found)
        assert histories[0] == histories[1]

    def test_rivals_are_those_of_which_a_trial_knew(self) -> None:
        study = new_study(lag=2)
        trials = []
        for _ in range(4):
            trials.append(study.ask())
            complete(study, trials[-1])
        assert [rival.number for rival in study.rivals(2)] == [0]
        assert [rival.number for rival in study.rivals(3)] == [0, 1]


class TestWidening:
    WIDE = PARAMETERS | {
        "train.lr": {"kind": "float", "low": 1e-5, "high": 1.0, "log": True},
        "network.attention_expansion": {
            "kind": "categorical",
            "choices": [2, 4, 8],
            "when": {"network.attention": True},
        },
        "train.batch_size": {"kind": "categorical", "choices": [16, 32]},  # 32 is the default
    }

    def test_keeps_the_old_trials(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        storage = InMemoryStorage()
        old = drawn(new_study(storage), 5)
        study = new_study(storage, self.WIDE)
        assert "the space has changed and holds all 5 earlier trials" in caplog.text
        new = drawn(study, 20)
        assert [all_params(trial) for trial in study.trials()][:5] == old
        assert all("train.batch_size" in params for params in new)
        assert {8} <= {params.get("network.attention_expansion") for params in new}

    def test_is_refused_where_a_trial_would_lie_outside(self) -> None:
        storage = InMemoryStorage()
        drawn(new_study(storage), 5)
        narrow = PARAMETERS | {"train.lr": {"kind": "float", "low": 0.09, "high": 0.1}}
        with pytest.raises(StudyError, match="parameters.train.lr.* trial 0 lies outside"):
            new_study(storage, narrow)
        new_study(storage)  # and has changed nothing

    def test_of_another_setting_is_refused(self) -> None:
        storage = InMemoryStorage()
        drawn(new_study(storage), 5)
        without_default = PARAMETERS | {
            "train.batch_size": {"kind": "categorical", "choices": [16, 64]}
        }
        with pytest.raises(StudyError, match="trial 0 lies outside"):
            new_study(storage, without_default)
