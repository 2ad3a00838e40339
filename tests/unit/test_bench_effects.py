"""Differences are paired by seed, and their intervals are Student's."""

from typing import Any

import pytest
from scipy import stats

from mimimi_core.config import TrialConfig
from tests.bench.effects import (
    ARMS,
    BASE,
    BF16,
    BUDGET,
    MEAN,
    collect,
    effect_of,
    order_jobs,
    print_bf16,
    print_effects,
)


def row(arm: str, machine_type: str, seed: int, dev_auc: float) -> dict[str, Any]:
    return {"arm": arm, "machine_type": machine_type, "seed": seed, "dev_auc": dev_auc}


def test_an_effect_is_the_paired_difference_with_scipys_interval() -> None:
    arm, base = {0: 0.6, 1: 0.8, 2: 1.0, 7: 1.0}, {0: 0.5, 1: 0.6, 2: 0.7, 9: 0.0}
    found = effect_of(arm, base)
    expected = stats.ttest_rel([0.6, 0.8, 1.0], [0.5, 0.6, 0.7]).confidence_interval(0.95)
    assert found.n_seeds == 3
    assert found.mean == pytest.approx(0.2)
    assert found.ci == pytest.approx((expected.low, expected.high))


def test_what_one_seed_or_none_cannot_tell_is_not_told() -> None:
    assert effect_of({}, {1: 1.0}).mean is None
    assert effect_of({1: 0.5}, {1: 0.4}).ci is None


def test_the_mean_over_types_is_of_seeds_that_have_all_types() -> None:
    rows = [row(BASE, "fan", 0, 0.5), row(BASE, "valve", 0, 0.7), row(BASE, "fan", 1, 0.9)]
    aucs = collect(rows)
    assert aucs[BASE, MEAN] == pytest.approx({0: 0.6})
    assert aucs["mask", MEAN] == {}


@pytest.mark.parametrize("rows", [[], [row(BASE, "fan", 0, 0.5)]])
def test_tables_are_printed_of_what_an_interrupt_left(rows: list[dict[str, Any]]) -> None:
    effects = print_effects(collect(rows))
    assert effects.keys() == {BASE}
    assert print_bf16(effects)["within_spread"] == {}


def test_three_seeds_of_all_arms_come_before_further_ones_of_any() -> None:
    jobs = order_jobs(["fan", "valve"], 5)
    n_all = 3 * len(ARMS) * 2
    assert len(jobs) == 5 * len(ARMS) * 2
    assert all(seed < 3 for seed, _, _ in jobs[:n_all])
    assert {arm for _, arm, _ in jobs[n_all : n_all + 8]} == {BASE, BF16}


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != BASE])
def test_an_arm_changes_one_setting(arm: str) -> None:
    settings = [
        TrialConfig.from_params(ARMS[BASE] | ARMS[name] | BUDGET).to_params()
        for name in (BASE, arm)
    ]
    changed = {name for name in settings[0] if settings[0][name] != settings[1][name]}
    assert changed == set(ARMS[arm])
    assert len(changed) == 1
