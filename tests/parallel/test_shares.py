"""Shares of a batch, and the speed they follow: exact where it can be checked by trying all, steady under noise, quick after a change."""

import itertools
import random

import pytest

from penstock.parallel.pace import AGREE, Pace
from penstock.parallel.shares import BAND, Rules, best_shares, fastest_shares, imbalance, next_shares, step_seconds


def all_shares(sequences, replicas, low, high):
    """Every way of sharing out."""
    for shares in itertools.product(range(low, high + 1), repeat=replicas - 1):
        if low <= sequences - sum(shares) <= high:
            yield (*shares, sequences - sum(shares))


@pytest.mark.parametrize("seed", range(40))
def test_no_other_shares_end_sooner(seed):
    draw = random.Random(seed)
    replicas = draw.randint(2, 4)
    low, high = draw.randint(1, 2), draw.randint(3, 9)
    sequences = draw.randint(replicas * low, replicas * high)
    seconds = [draw.choice([1.0, 1.0, draw.uniform(0.2, 5)]) for _ in range(replicas)]
    shares = fastest_shares(seconds, sequences, low, high)
    assert sum(shares) == sequences and all(low <= share <= high for share in shares)
    best = min(step_seconds(seconds, other) for other in all_shares(sequences, replicas, low, high))
    assert step_seconds(seconds, shares) == pytest.approx(best, rel=1e-12)


def test_many_replicas_come_within_a_sequence_of_the_ideal_split():
    seconds = [random.uniform(0.5, 2.0) for _ in range(200)]
    shares = fastest_shares(seconds, 12_800, 1, 12_800)
    ideal = 12_800 / sum(1 / s for s in seconds)
    assert sum(shares) == 12_800 and step_seconds(seconds, shares) < ideal + max(seconds)


def test_one_slow_rank_of_four_gets_half():
    assert best_shares([1, 1, 2, 1], Rules(28, 4, 16)) == (8, 8, 4, 8)
    assert imbalance([1, 1, 2, 1]) == 1.6


def test_coupled_replicas_have_as_many_micro_batches_of_at_most_the_limit():
    rules = Rules(16, 4, 4, coupled=True)
    shares = best_shares([1, 1, 2, 1], rules)
    assert sorted(shares) == [2, 4, 5, 5] and shares[2] == 2, "a fifth sequence needs a second micro-batch, and then two is the least"
    assert rules.count(shares, 2) == rules.count(shares, 5) == 2
    far = best_shares([1, 1, 100, 1], rules)
    assert far[2] == 2 and rules.allow(far) and not rules.allow((5, 5, 5, 1))
    assert best_shares([1, 1, 2, 1], Rules(16, 4, 1, coupled=True)) == (4, 4, 4, 4), "single sequences leave nothing to move"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_speeds_the_rules_are_kept(seed):
    draw = random.Random(seed)
    replicas, each = draw.randint(2, 5), draw.randint(1, 9)
    rules = Rules(replicas * each, replicas, draw.randint(1, 9), draw.random() < 0.7, lambda count: count % 2 == 0 or count > 3)
    shares = best_shares([draw.uniform(0.1, 3) for _ in range(replicas)], rules)
    assert rules.allow(shares) or shares == rules.even
    if shares != rules.even:
        for share in shares:
            count = rules.count(shares, share)
            assert -(-share // count) <= rules.limit and count <= share
            assert not rules.coupled or (count == rules.count(shares, shares[0]) and rules.takes(count))


def test_shares_of_another_layout_or_batch_are_not_allowed():
    rules = Rules(16, 4, 4)
    assert rules.allow((6, 5, 1, 4)) and not any(rules.allow(shares) for shares in ((), (8, 8), (5, 5, 5, 5), (8, 8, 0, 0)))


def test_small_differences_and_small_gains_change_nothing_and_recovery_gives_even_shares():
    rules = Rules(64, 4, 16)
    assert next_shares([1, 1, 1 + BAND / 2, 1], rules.even, rules) == rules.even
    slowed = next_shares([1, 1, 2, 1], rules.even, rules)
    assert slowed[2] < 11
    assert next_shares([1, 1, 2.03, 1], slowed, rules) == slowed
    assert next_shares([1, 1.01, 1.02, 1], slowed, rules) == rules.even


def settle(pace, steps, seconds, shares, rules):
    """Shares after each of some steps that take `seconds(step, replica)` a sequence."""
    found = []
    for step in range(steps):
        pace.observe([seconds(step, replica) for replica in range(rules.replicas)])
        shares = next_shares(pace.seconds, shares, rules) if pace.known else shares
        found.append(shares)
    return found


RULES = Rules(56, 4, 16)


def test_steady_ranks_keep_even_shares():
    assert set(settle(Pace(4), 50, lambda step, r: 1.0, RULES.even, RULES)) == {RULES.even}


def test_nothing_is_predicted_before_some_steps_agree():
    pace = Pace(2)
    for _ in range(AGREE):
        assert not pace.known
        pace.observe([1.0, 3.0])
    assert pace.known and pace.seconds == [1.0, 3.0]


@pytest.mark.slow
def test_noise_of_some_percent_hardly_moves_shares():
    for seed in range(5):
        draw = random.Random(seed)
        found = settle(Pace(4), 300, lambda step, r, draw=draw: draw.lognormvariate(0, 0.05), RULES.even, RULES)
        assert sum(shares == RULES.even for shares in found) > 0.8 * len(found)
        assert all(abs(share - 14) <= 2 for shares in found for share in shares)


@pytest.mark.parametrize("factor", [3.0, 1000.0])
@pytest.mark.parametrize("steps", [(10,), (10, 11), (10, 12)])
def test_stalls_of_single_steps_move_nothing(factor, steps):
    found = settle(Pace(4), 60, lambda step, r: factor if step % 20 in steps and r == 1 else 1.0, RULES.even, RULES)
    assert set(found) == {RULES.even}


def test_stalls_beside_a_change_do_not_hide_it_nor_count():
    found = settle(Pace(4), 40, lambda step, r: 1000.0 if step in (21, 23) and r == 2 else 1.0 + (step >= 20 and r == 2), RULES.even, RULES)
    assert found[19] == RULES.even and set(found[22:]) == {(16, 16, 8, 16)}


def test_a_slowed_rank_is_followed_within_few_steps_in_one_change_and_recovers():
    found = settle(Pace(4), 60, lambda step, r: 2.0 if 20 <= step < 40 and r == 2 else 1.0, RULES.even, RULES)
    assert found[19] == RULES.even and found[20 + AGREE - 1] == (16, 16, 8, 16) == found[39]
    assert found[40 + AGREE - 1] == RULES.even == found[-1] and len({*found}) == 2


def test_a_slow_drift_is_followed_too():
    found = settle(Pace(4), 120, lambda step, r: 1 + min(step, 80) * 0.01 if r == 0 else 1.0, RULES.even, RULES)
    assert step_seconds([1.8, 1, 1, 1], found[-1]) < (1 + 2 * BAND) * step_seconds([1.8, 1, 1, 1], best_shares([1.8, 1, 1, 1], RULES))


def test_slowness_by_turns_counts_with_its_mean():
    found = settle(Pace(4), 200, lambda step, r: 1.0 + 2.0 * (step % 2) if r == 3 else 1.0, RULES.even, RULES)
    assert all(7 <= shares[3] <= 9 for shares in found[30:]) and len({*found[30:]}) <= 3


def test_a_part_that_does_not_shrink_with_the_share_is_found_out():
    """Where a step takes 5 s besides 1 s or 3 s a sequence, shares go on until all end together."""
    pace, shares = Pace(4), RULES.even
    times = []
    for _ in range(40):
        times = [5 + share * (3 if r == 1 else 1) for r, share in enumerate(shares)]
        pace.observe([took / share for took, share in zip(times, shares)])
        shares = next_shares(pace.seconds, shares, RULES) if pace.known else shares
    best = min(max(5 + n * (3 if r == 1 else 1) for r, n in enumerate(other)) for other in all_shares(56, 4, 5, 20))
    assert max(times) <= best + 3
