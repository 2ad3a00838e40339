"""Replayed learning curves: which data sets take part, what a trial reports, what random finds."""

import json

import numpy as np
import pandas as pd
import pytest

from search.config import SamplerConfig, SchedulerConfig
from tests.bench import curves as curves_module
from tests.bench.curves import Curves, lcdb_curves, own_curves
from tests.bench.multifidelity import Arm, gains, mean_share, share_of_mean, shares
from tests.bench.simulation import Step

FULL = Arm(SamplerConfig(name="random"), SchedulerConfig(name="none"), 4)


def two_points(*rows: list[list[float]]) -> Curves:
    """Two learners, their seeds' values after 1 and 3 epochs."""
    tables = {(place,): np.array(values) for place, values in enumerate(rows)}
    return Curves("task", {"learner": ["a", "b"]}, [1, 3], [1.0, 3.0], tables)


def recorded(openmlid: int, sizes: list[int], learners: int = 15, seeds: int = 5) -> pd.DataFrame:
    rows = [
        (openmlid, f"learner{learner}", 0, seed, size, learner + seed / 10 + size / 1e6)
        for learner in range(learners)
        for seed in range(seeds)
        for size in sizes
    ]
    names = ["openmlid", "learner", "outer_seed", "inner_seed", "size_train", "score_valid"]
    return pd.DataFrame(rows, columns=names)


SIZES = [16, 23, 45, 128, 362, 1024]


def test_a_trial_reports_a_recorded_seed_up_to_its_failure() -> None:
    curves = two_points([[0.5, 0.6]], [[0.7, np.nan]])
    assert curves.replay(0)({"learner": "a"}, 5) == [Step(1, 0.5, 1.0), Step(3, 0.6, 2.0)]
    assert curves.replay(0)({"learner": "b"}, 5) == [Step(1, 0.7, 1.0), Step(3, None, 2.0)]


def test_the_number_and_the_seed_choose_among_recorded_seeds() -> None:
    curves = two_points([[0.5, s / 100] for s in range(50)], [[0.7, 0.8]])
    drawn = {
        seed: [curves.replay(seed)({"learner": "a"}, n)[1] for n in range(9)] for seed in (1, 2)
    }
    assert drawn[1] == [curves.replay(1)({"learner": "a"}, n)[1] for n in range(9)]
    assert drawn[1] != drawn[2]
    assert len(set(drawn[1])) > 4


def test_what_random_search_expects_is_exact() -> None:
    curves = two_points([[0, 0.8], [0, 0.6]], [[0, 0.9], [0, np.nan]])
    rng, best = np.random.default_rng(0), []
    means = {0.8: 0.7, 0.6: 0.7, 0.9: 0.9}
    for _ in range(20_000):
        drawn = rng.choice([0.8, 0.6, 0.9, np.nan], size=3)
        if not np.isnan(drawn).all():
            best.append((np.nanmax(drawn), means[np.nanmax(drawn)]))
    assert curves.best_of_random(3) == pytest.approx(np.mean(best, axis=0), abs=0.003)
    assert curves.best_of_random(1) == pytest.approx((2.3 / 3, 2.3 / 3))
    assert curves.best_of_random(500) == pytest.approx((0.9, 0.9))


def test_equal_bests_count_by_how_often_they_come_first() -> None:
    """A search keeps the first of them, whichever's mean is higher."""
    curves = two_points([[0, 1.0], [0, 0.4]], [[0, 1.0], [0, 1.0], [0, 0.0], [0, 0.0]])
    rng, best = np.random.default_rng(0), []
    means = np.array([0.7, 0.7, 0.5, 0.5])
    for _ in range(20_000):
        drawn = rng.choice(4, size=3)  # of a: 1 or 0.4, of b: 1 or 0
        values = np.array([1.0, 0.4, 1.0, 0.0])[drawn]
        first = values.argmax()
        best.append((values[first], means[drawn[first]]))
    assert curves.best_of_random(3) == pytest.approx(np.mean(best, axis=0), abs=0.006)
    assert curves.best_of_random(1) == pytest.approx((0.6, 0.6))
    assert curves.best_of_random(500) == pytest.approx((1.0, 0.6))


def test_a_data_set_takes_part_as_far_as_enough_learners_were_recorded() -> None:
    table = pd.concat([recorded(1, SIZES), recorded(2, SIZES[:-1]), recorded(3, SIZES, 14)])
    longer = recorded(4, [2896], learners=14)  # one learner too few to make it longer
    table = pd.concat([table, recorded(4, SIZES), longer, recorded(5, SIZES, seeds=4)])
    found = {curves.name: curves for curves in lcdb_curves(table)}
    assert list(found) == ["1", "4"]
    assert found["1"].epochs == found["4"].epochs == [1, 3, 9, 27, 81]
    assert found["1"].trained == [1, 45 / 16, 8, 362 / 16, 64]
    steps = found["1"].replay(0)({"learner": "learner3"}, 0)
    assert [step.seconds for step in steps] == pytest.approx(np.diff([0, *found["1"].trained]))
    assert [step.value for step in steps] == pytest.approx(
        [steps[0].value + (size - 16) / 1e6 for size in (16, 45, 128, 362, 1024)]
    )
    assert found["1"].mean({"learner": "learner3"}) == pytest.approx(3.2 + 0.001024)


def test_a_size_that_is_far_below_a_rung_does_not_pass_for_it() -> None:
    assert not list(lcdb_curves(recorded(1, [*SIZES[:-1], 810])))
    assert list(lcdb_curves(recorded(1, [*SIZES[:-1], 917])))


def test_a_seed_without_a_score_is_left_out() -> None:
    table = recorded(1, SIZES, seeds=6)
    table.loc[(table.inner_seed == 5) & (table.size_train == 128), "score_valid"] = np.nan
    (curves,) = lcdb_curves(table)
    assert curves.mean({"learner": "learner0"}) == pytest.approx(0.2 + 0.001024)


def test_own_curves_that_end_early_failed_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"grid": {"on": [False, True]}, "epochs": [1, 3], "curves": {"fan": [[0.5], [1, 2]]}}
    (tmp_path / "own.json").write_text(json.dumps(content))
    monkeypatch.setattr(curves_module, "OWN", tmp_path / "own.json")
    (curves,) = own_curves()
    assert curves.name == "fan"
    assert curves.replay(0)({"on": False}, 0) == [Step(1, 0.5, 1), Step(3, None, 2)]
    assert curves.replay(0)({"on": True}, 0) == [Step(1, 1, 1), Step(3, 2, 2)]


def test_the_recorded_own_curves_are_whole() -> None:
    for curves in own_curves():
        value, _ = curves.best_of_random(40)
        assert 0.5 < value < 1


def test_a_search_gains_once_the_epochs_of_its_trials_are_trained() -> None:
    curves = two_points([[0.9, 0.6], [0.9, 0.8]], [[0.1, 0.2]])
    found, spent = gains(curves, FULL, workers=4, seed=0)
    assert not found[:, :100].any()  # 4 workers train 3 epochs each of 120: a tenth
    assert spent == pytest.approx(0.1)
    # A random trial has 0.45 by either, the best of 40 has 0.8 by value and 0.7 by mean.
    assert set(found[0, 100:].round(3)) < {0.429, 1.0}
    assert set(found[1, 100:].round(3)) == {1.0}


def test_the_share_is_where_gains_reach_one() -> None:
    rows = np.zeros((3, 1001))
    rows[0, 200:], rows[1, 400:] = 1.0, 3.0
    assert shares(rows).tolist()[:2] == [0.2, 0.4]
    assert np.isnan(shares(rows)[2])
    mean, low, high = mean_share(rows)  # never is 1
    assert mean == pytest.approx(1.6 / 3)
    assert 0.2 <= low < mean < high <= 1
    assert share_of_mean(rows).mean == 0.4
    assert share_of_mean(rows[:1] * 0.9) == (1, 1, 1)
    assert share_of_mean(rows[:1]) == pytest.approx((0.2, 0.2, 0.2))
