"""The detector of each metric by itself, and what all detectors share: expectations side by side, ranks against the others, means over ranks."""

import numpy as np
import pytest

from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.multivariate import mean_over_ranks
from penstock.monitor.detect.reading import apart
from penstock.monitor.detect.univariate import Univariate
from penstock.monitor.series.table import ABSENT, Names, StepTable


def alarms(*series):
    """Rows at which each of some series of the same length alarms."""
    detector = Univariate(len(series))
    rows = [detector.alarms(detector.update(values_m)) for values_m in np.array(series).T]
    return [np.flatnonzero(column).tolist() for column in np.array(rows).T]


def daily(steps=3000, seed=0):
    """Some noise on a period of 200 steps."""
    return 10 * np.sin(2 * np.pi * np.arange(steps) / 200) + 0.3 * np.random.default_rng(seed).normal(size=steps)


@pytest.mark.slow
def test_a_spike_and_a_new_level_are_new_at_once_and_a_period_is_not():
    spike, level = daily(), daily()
    spike[2000] = 60.0
    level[2000:] += 25.0
    assert [next(row for row in rows if row >= 1500) for rows in alarms(spike, level)] == [2000, 2000]
    calm = alarms(*(daily(seed=seed) for seed in range(10)))
    assert sum(row >= 1000 for rows in calm for row in rows) <= 10, "of 20,000 values"


@pytest.mark.slow
def test_what_came_often_is_not_new_any_more():
    spikes = daily(6000)
    spikes[300::200] = 60.0
    [rows] = alarms(spikes)
    assert 300 in rows and len(rows) <= 4, "of 29 spikes"


@pytest.mark.slow
def test_a_metric_that_is_always_new_has_to_do_more_for_each_alarm():
    walks = np.random.default_rng(1).normal(size=(20, 6000)).cumsum(axis=1)
    counts = [len(rows) for rows in alarms(*walks)]
    assert max(counts) < 20 and sum(counts) < 200, counts


@pytest.mark.slow
def test_columns_do_not_touch_each_other_and_absent_values_leave_a_column_as_it_was():
    one, other = daily(seed=3), daily(seed=4) * 1e6
    one[1500], other[1700] = 50.0, -1e8
    alone, whole = (Univariate(1), Univariate(1)), Univariate(1)
    for row in range(2000):
        expected = [detector.update(np.array([value]))[0] for detector, value in zip(alone, (one[row], other[row]))]
        whole.grow(3)
        for values_m in ([one[row], np.nan, np.nan], [np.inf, np.nan, other[row]]):
            novelty_m = whole.update(np.array(values_m))
            assert novelty_m[1] == 0.0 and novelty_m[np.isfinite(values_m)] == [expected.pop(0)]


@pytest.mark.slow
def test_numbers_that_are_huge_or_far_from_zero_are_as_good_as_others():
    plain, random = daily(), np.random.default_rng(5)
    plain[2000] = 60.0
    scaled = [plain * 1e-15, plain * 1e20, plain + 1e6, plain * 1e300, random.normal(size=3000) * 1e307]
    found = alarms(plain, *scaled)
    assert found[0] == found[1] == found[2] == found[3] and 2000 in found[0]


def table(values_rm, step=1):
    return StepTable(step, float(step), Names(f"m/{i}" for i in range(len(values_rm[0]))), tuple(range(len(values_rm))), np.array(values_rm, dtype=float))


def test_a_rank_is_held_against_the_median_of_the_others():
    random = np.random.default_rng(0)
    for ranks in range(1, 9):
        values_r = random.integers(0, 4, ranks) + random.choice([0.0, np.nan], ranks, p=[0.8, 0.2])
        for rank, found in enumerate(apart(values_r)):
            others = np.delete(values_r, rank)
            others = others[np.isfinite(others)]
            known = np.isfinite(values_r[rank]) and len(others)
            assert found == values_r[rank] - np.median(others) if known else np.isnan(found)


def test_the_mean_over_ranks_is_of_those_that_measured_a_number():
    found = mean_over_ranks(table([[1, ABSENT, np.inf, np.nan, 2], [3, 4, 5, ABSENT, 4], [5, ABSENT, -np.inf, np.nan, 6]]))
    assert found[[0, 1, 2, 4]].tolist() == [3.0, 4.0, 5.0, 4.0] and np.isnan(found[3])


def test_expectations_of_parts_that_grow_between_each_other_stay_apart():
    expected = Expected()
    ones, tens = expected.part(lambda table: table.values_rm[0]), expected.part(lambda table: 10 * table.values_rm[0])
    for step in range(1, 60):
        expected.update(table([[1.0, 2.0, 3.0][: 1 + step // 20]], step))
    assert np.allclose(ones.against.expected_m, [1, 2, 3]) and np.allclose(tens.against.expected_m, [10, 20, 30])
    assert tens.against.seen_m.tolist() == [58, 39, 19]
    tens.forget_one(1)
    expected.update(table([[1.0, 2.0, 3.0]], 60))
    assert tens.against.seen_m.tolist() == [59, 0, 20] and ones.against.seen_m.tolist() == [59, 40, 20]
