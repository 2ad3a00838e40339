"""Fresh seeds choose the winner; what a seed could not do is never counted as if it had."""

from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.config import SpaceFile
from search.confirmation import finalists, find_winner, ranked
from search.studies import TypeStudy
from tests.doubles import space_file
from tests.study_fixtures import new_study


@pytest.fixture
def study() -> TypeStudy:
    """Trials 0 to 4: .6, .9, pruned at .95, failed, .7."""
    study = new_study()
    endings = [(0.6, "COMPLETE"), (0.9, "COMPLETE"), (0.95, "PRUNED"), (0.5, "FAIL")]
    endings.append((0.7, "COMPLETE"))
    for value, state in endings:
        number = study.ask().number
        study.record_epoch(number, 1, {}, value)
        is_complete = state == "COMPLETE"
        study.finish(number, TrialState[state], value=value if is_complete else None)
    return study


def settings(top: int, seeds: int) -> SpaceFile:
    confirmation = space_file().confirmation.model_copy(update={"top": top, "seeds": seeds})
    return space_file().model_copy(update={"confirmation": confirmation})


def note(study: TypeStudy, number: int, *objectives: float | None) -> None:
    for index, objective in enumerate(objectives):
        outcome = {"failure": "crash"} if objective is None else {"objective": objective}
        study.note(f"confirmation/{number}/{index}", outcome)


def test_finalists_are_the_best_complete_trials(study: TypeStudy) -> None:
    assert finalists(study.trials(), 2) == [1, 4]
    assert finalists(study.trials(), 9) == [1, 4, 0]
    assert finalists(study.trials(), 0) == []


def test_the_highest_mean_wins_and_the_earlier_of_equals() -> None:
    assert ranked({1: [0.9, 0.5], 4: [0.75, 0.75]}) == [4, 1]
    assert ranked({4: [0.7, 0.7], 1: [0.7, 0.7]}) == [1, 4]


def test_the_best_finalists_judge_together_where_that_is_asked_for(
    study: TypeStudy, tmp_path: Path
) -> None:
    note(study, 1, 0.6)
    note(study, 4, 0.8)
    note(study, 0, 0.5)
    space = settings(top=3, seeds=1)
    together = space.confirmation.model_copy(update={"ensemble": 2})
    winner = find_winner(study, space.model_copy(update={"confirmation": together}), tmp_path)
    assert winner is not None
    assert winner.members == (4, 1)
    assert [Path(state).parent.name for state in winner.checkpoints] == ["00004-0", "00001-0"]
    assert winner.objectives == (0.8,)  # of the winner itself


def test_the_winner_is_the_finalist_that_fresh_seeds_prefer(
    study: TypeStudy, tmp_path: Path
) -> None:
    note(study, 1, 0.6, 0.7)
    note(study, 4, 0.8, 0.7)
    winner = find_winner(study, settings(top=2, seeds=2), tmp_path)
    assert winner is not None
    assert winner.number == 4
    assert winner.objectives == (0.8, 0.7)
    assert winner.mean == pytest.approx(0.75)
    # the first fresh seed's network, not the better one's: that would be selection again
    assert Path(winner.checkpoints[0]).parent == tmp_path / "confirmation" / "fan" / "00004-0"


def test_a_finalist_that_fails_with_a_fresh_seed_does_not_win(
    study: TypeStudy, tmp_path: Path
) -> None:
    note(study, 1, 0.95, None)
    note(study, 4, 0.6, 0.6)
    winner = find_winner(study, settings(top=2, seeds=2), tmp_path)
    assert winner is not None
    assert winner.number == 4


def test_without_confirmation_the_best_complete_trial_stands(
    study: TypeStudy, tmp_path: Path
) -> None:
    winner = find_winner(study, settings(top=0, seeds=2), tmp_path)
    assert winner is not None
    assert (winner.number, winner.objectives, winner.mean) == (1, (), None)
    assert Path(winner.checkpoints[0]).parent == tmp_path / "checkpoints" / "fan" / "00001"


def test_fresh_seeds_differ_from_the_trial_s_and_from_each_other(study: TypeStudy) -> None:
    seeds = {study.train_seed(1), study.train_seed(1, 0), study.train_seed(1, 1)}
    assert len(seeds) == 3


@pytest.mark.parametrize(("is_over", "n_said"), [(True, 1), (False, 0)])
def test_that_nobody_is_confirmed_is_said_only_once_the_study_is_over(
    is_over: bool,
    n_said: int,
    study: TypeStudy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert find_winner(study, settings(top=2, seeds=2), tmp_path, is_over=is_over)
    warning = "fan: no finalist is confirmed, the best trial stands"
    assert caplog.messages == [warning] * n_said
