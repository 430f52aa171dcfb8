"""Synthesised schedules: always possible and within memory, never worse than what is at hand, and as good as the bounds allow."""

import math
import random

import pytest

from penstock.config import ConfigError
from penstock.parallel.pipeline.bounds import least_memory, makespan_bound, period_bound
from penstock.parallel.pipeline.check import check_schedule
from penstock.parallel.pipeline.kinds import candidates, named_schedule
from penstock.parallel.pipeline.schedule import Costs, wire
from penstock.parallel.pipeline.simulate import simulate
from penstock.parallel.pipeline.synthesise import best_schedule, polished, synthesise

REAL = (1.0, 1.2, 0.8, 0.05)  # forward, input gradient, weight gradient, transfer of one hop


def drawn(rnd, rank_of, zeros=True):
    """Unequal costs; now and then a stage that costs next to nothing, or holds nothing."""
    stages = len(rank_of)
    times = [tuple(rnd.choice((0.0 if zeros else 1.0, rnd.uniform(0.1, 2.0), rnd.uniform(0.5, 1.5))) for _ in range(stages)) for _ in range(3)]
    memory = tuple(rnd.choice((0.0 if zeros else 0.5, rnd.uniform(0.1, 1.0), 0.5)) for _ in range(stages))
    return Costs(*times, tuple(rnd.choice((0.0, rnd.uniform(0.0, 0.5))) for _ in range(stages - 1)), memory)


def drawn_wiring(rnd):
    """Loops and waves, and any other order of stages on ranks."""
    ranks, chunks = rnd.randint(1, 6), rnd.randint(1, 4)
    rank_of = list(wire(ranks, chunks, rnd.choice(("loop", "wave"))))
    if rnd.random() < 0.4:
        rnd.shuffle(rank_of)
    return tuple(rank_of) + tuple(rnd.randrange(ranks) for _ in range(rnd.choice((0, 0, 2))))


def bubbles(costs, schedule):
    timing = simulate(schedule, costs)
    return 1 - max(timing.work) / timing.makespan, 1 - max(timing.work) / timing.period


@pytest.mark.parametrize("seed", range(40))
def test_every_schedule_is_possible_within_its_cap_and_above_its_bounds(seed):
    rnd = random.Random(seed)
    rank_of = drawn_wiring(rnd)
    ranks, micros, barrier = max(rank_of) + 1, rnd.choice((1, 2, 3, 7, 12)), rnd.random() < 0.5
    costs = drawn(rnd, rank_of)
    least = least_memory(costs, rank_of) / ranks
    cap = rnd.choice((least, least * rnd.uniform(1.0, 4.0), None))
    schedule = synthesise(costs, rank_of, micros, cap, barrier, effort=0.05)
    check_schedule(schedule, costs, None if cap is None else cap * (1 + 1e-9))
    timing = simulate(schedule, costs)
    assert timing.makespan >= makespan_bound(costs, rank_of, micros, cap) - 1e-9
    assert timing.period >= period_bound(costs, rank_of, micros, cap) - 1e-9
    assert timing.makespan >= timing.period - 1e-9


@pytest.mark.parametrize(("ranks", "micros"), [(2, 3), (4, 4), (4, 9), (6, 14)])
def test_named_kinds_do_not_beat_the_bounds(ranks, micros):
    rnd = random.Random(ranks)
    for chunks in (1, 2, 4):
        for schedule in candidates(ranks, micros, chunks):
            costs = drawn(rnd, schedule.rank_of, zeros=False)
            timing = simulate(schedule, costs)
            cap = max(timing.peak_memory) / ranks
            assert timing.makespan >= makespan_bound(costs, schedule.rank_of, micros, cap) - 1e-9
            assert timing.period >= period_bound(costs, schedule.rank_of, micros, cap) - 1e-9


def test_bounds_without_a_cap_are_the_published_formula():
    costs = Costs.even(8, 4, *REAL)
    assert makespan_bound(costs, wire(8, 4, "wave"), 16) == pytest.approx(16 * 3.0 + 7 * (1.0 / 4 + 0.05))
    assert period_bound(costs, wire(8, 4, "wave"), 16) == pytest.approx(16 * 3.0)


def test_with_one_chunk_and_memory_for_one_micro_batch_the_bound_is_reached():
    costs = Costs.even(4, 1, 1.0, 1.0, 1.0, 0.5)
    schedule = synthesise(costs, wire(4, 1, "loop"), 1, 0.25)
    assert simulate(schedule, costs).makespan == pytest.approx(makespan_bound(costs, wire(4, 1, "loop"), 1, 0.25)) == 12.0


def test_the_same_question_has_the_same_answer():
    costs = Costs.even(4, 2, *REAL)
    assert synthesise(costs, wire(4, 2, "wave"), 9, effort=0.2) == synthesise(costs, wire(4, 2, "wave"), 9, effort=0.2)


def test_one_rank_alone_never_waits():
    costs = Costs.even(1, 3, *REAL)
    assert bubbles(costs, synthesise(costs, (0, 0, 0), 5, effort=0.1)) == pytest.approx((0.0, 0.0))


@pytest.mark.slow
def test_equal_times_reach_both_bounds():
    four, two = Costs.even(8, 4, 1.0, 1.0, 1.0, 0.0), Costs.even(8, 2, 1.0, 1.0, 1.0, 0.0)
    assert bubbles(four, synthesise(four, wire(8, 4, "wave"), 16, effort=0.5))[0] == pytest.approx(1 - 48 / 49.75)
    assert bubbles(two, synthesise(two, wire(8, 2, "wave"), 16, barrier=False, effort=0.5))[1] < 0.005


@pytest.mark.slow
@pytest.mark.parametrize(("micros", "barrier", "most"), [(16, True, 0.075), (16, False, 0.06), (32, True, 0.04), (32, False, 0.032)])
def test_real_times_leave_less_idle_than_zb_v(micros, barrier, most):
    def costs_of(rank_of):
        return Costs.even(8, len(rank_of) // 8, *REAL)

    v = named_schedule("zb-v", 8, micros)
    choice = best_schedule(costs_of, 8, micros, 1.0, barrier, (4,), [v])
    check_schedule(choice.schedule, choice.costs, 1.0)
    idle = bubbles(choice.costs, choice.schedule)[0 if barrier else 1]
    assert idle <= min(most, bubbles(costs_of(v.rank_of), v)[0 if barrier else 1])


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_never_worse_than_a_candidate_at_equal_memory(seed):
    rnd = random.Random(seed)
    ranks, micros, barrier, cap = 4, rnd.choice((8, 10)), seed % 2 == 0, rnd.choice((0.7, 1.0))
    pieces = [[rnd.uniform(0.7, 1.3) for _ in range(16)] for _ in range(3)]

    def costs_of(rank_of):
        each = 16 // len(rank_of)
        times = [tuple(sum(row[s * each : (s + 1) * each]) / 4 for s in range(len(rank_of))) for row in pieces]
        return Costs(*times, (0.05,) * (len(rank_of) - 1), (ranks / len(rank_of),) * len(rank_of))

    named = [schedule for chunks in (1, 2, 4) for schedule in candidates(ranks, micros, chunks)]
    choice = best_schedule(costs_of, ranks, micros, cap, barrier, candidates=named, effort=0.1)
    check_schedule(choice.schedule, choice.costs, cap)
    mine = choice.timing.makespan if barrier else choice.timing.period
    assert mine >= choice.bound - 1e-9
    for schedule in named:
        timing = simulate(schedule, costs_of(schedule.rank_of))
        if max(timing.peak_memory) <= cap * ranks:
            assert mine <= (timing.makespan if barrier else timing.period) + 1e-9


def test_polish_mends_a_named_kind():
    v = named_schedule("zb-v", 8, 16)
    costs = Costs.even(8, 2, *REAL)
    better = polished(v, costs)
    check_schedule(better, costs, 1.0)
    assert simulate(better, costs).makespan < simulate(v, costs).makespan


def test_a_cap_below_what_any_schedule_needs_is_refused_with_the_least():
    costs = Costs.even(4, 2, *REAL)
    with pytest.raises(ConfigError, match=r"set the memory cap to 0\.25 or more"):
        synthesise(costs, wire(4, 2, "wave"), 8, 0.2)
    with pytest.raises(ConfigError, match=r"set the memory cap to 0\.25 or more"):
        best_schedule(lambda rank_of: Costs.even(4, len(rank_of) // 4, *REAL), 4, 8, 0.2)


def test_a_rank_without_a_stage_is_refused():
    with pytest.raises(ConfigError, match="without a gap"):
        synthesise(Costs.even(2, 1, *REAL), (0, 2), 4)


def test_least_cap_is_the_fullest_rank():
    costs = Costs((1.0,) * 3, (1.0,) * 3, (1.0,) * 3, (0.0,) * 2, (0.2, 0.3, 0.4))
    assert math.isclose(least_memory(costs, (0, 1, 0)), 0.6)
