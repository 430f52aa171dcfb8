"""The checker lets every schedule through that can be run, and no other: an independent oracle decides which those are."""

import graphlib
import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.config import ConfigError
from penstock.parallel.pipeline.check import ScheduleError, check_schedule, peak_memory
from penstock.parallel.pipeline.kinds import KINDS, named_schedule
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule, wire
from penstock.parallel.pipeline.simulate import simulate


def with_rows(schedule, rows):
    return Schedule(schedule.kind, schedule.rank_of, schedule.micro_batches, tuple(tuple(row) for row in rows))


def can_run(schedule):
    """The oracle: the order of each rank and the flow of data, written down as one graph, have a topological order."""
    graph = {}
    for row in schedule.actions:
        for before, after in itertools.pairwise(row):
            graph.setdefault(after, set()).add(before)
    backwards = {(a.stage, a.micro): a for row in schedule.actions for a in row if a.work in "IB"}
    for row in schedule.actions:
        for a in row:
            needed = graph.setdefault(a, set())
            if a.work == "F" and a.stage > 0:
                needed.add(Action("F", a.stage - 1, a.micro))
            if a.work in "IB":
                needed.add(Action("F", a.stage, a.micro))
                if a.stage + 1 < schedule.stages:
                    needed.add(backwards[a.stage + 1, a.micro])
            if a.work == "W":
                needed.add(backwards[a.stage, a.micro])
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError:
        return False
    return True


@st.composite
def named(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    ranks = draw(st.integers(1, 6))
    micro = draw(st.integers(KINDS[kind].least(ranks), 14))
    chunks = draw(st.integers(2, 4)) if KINDS[kind].most_chunks == 0 else 0
    return named_schedule(kind, ranks, micro, chunks)


@st.composite
def shuffled(draw):
    """A schedule in a random possible order, of a random wiring, with whole and parted backwards mixed."""
    ranks, chunks, micros = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rank_of = wire(ranks, chunks, draw(st.sampled_from(["loop", "wave"])))
    random = draw(st.randoms(use_true_random=False))
    left = {}
    for s in range(len(rank_of)):
        for m in range(micros):
            works = random.choice(["FB", "FIW"])
            left[s, m] = list(works)
    rows, done = [[] for _ in range(ranks)], set()
    while left:
        ready = [
            (s, m) for (s, m), works in left.items()
            if works[0] == "W"
            or (works[0] == "F" and (s == 0 or ("F", s - 1, m) in done))
            or (works[0] in "IB" and (s == len(rank_of) - 1 or ("back", s + 1, m) in done))
        ]
        s, m = random.choice(ready)
        work = left[s, m].pop(0)
        if not left[s, m]:
            del left[s, m]
        done.add((work, s, m))
        if work in "IB":
            done.add(("back", s, m))
        rows[rank_of[s]].append(Action(work, s, m))
    return Schedule("shuffled", rank_of, micros, tuple(map(tuple, rows)))


any_schedule = st.one_of(named(), shuffled())


def place(data, schedule):
    rank = data.draw(st.integers(0, schedule.ranks - 1))
    return rank, data.draw(st.integers(0, len(schedule.actions[rank]) - 1))


@settings(max_examples=120, deadline=None)
@given(any_schedule)
def test_every_schedule_that_can_run_passes(schedule):
    check_schedule(schedule)


@settings(max_examples=120, deadline=None)
@given(any_schedule, st.data())
def test_a_dropped_action_is_named(schedule, data):
    rank, at = place(data, schedule)
    rows = [list(row) for row in schedule.actions]
    gone = rows[rank].pop(at)
    with pytest.raises(ScheduleError, match=f"rank {rank}: .*{gone}.* is missing"):
        check_schedule(with_rows(schedule, rows))


@settings(max_examples=120, deadline=None)
@given(any_schedule, st.data())
def test_a_doubled_action_is_named(schedule, data):
    rank, at = place(data, schedule)
    rows = [list(row) for row in schedule.actions]
    action = rows[rank][at]
    rows[rank].insert(data.draw(st.integers(0, len(rows[rank]))), action)
    with pytest.raises(ScheduleError, match=f"rank {rank}: {action} is there twice"):
        check_schedule(with_rows(schedule, rows))


@settings(max_examples=120, deadline=None)
@given(any_schedule, st.data())
def test_an_action_on_another_rank_is_named(schedule, data):
    assume(schedule.ranks > 1)
    rank, at = place(data, schedule)
    other = (rank + data.draw(st.integers(1, schedule.ranks - 1))) % schedule.ranks
    rows = [list(row) for row in schedule.actions]
    action = rows[rank].pop(at)
    rows[other].insert(data.draw(st.integers(0, len(rows[other]))), action)
    with pytest.raises(ScheduleError, match=f"rank {other}: {action} belongs on rank {rank}"):
        check_schedule(with_rows(schedule, rows))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(any_schedule, st.data())
def test_swapped_actions_are_refused_exactly_when_the_order_is_impossible(schedule, data):
    rank = data.draw(st.integers(0, schedule.ranks - 1))
    length = len(schedule.actions[rank])
    i, j = (data.draw(st.integers(0, length - 1)) for _ in range(2))
    rows = [list(row) for row in schedule.actions]
    rows[rank][i], rows[rank][j] = rows[rank][j], rows[rank][i]
    swapped = with_rows(schedule, rows)
    if can_run(swapped):
        check_schedule(swapped)
        simulate(swapped, Costs.even(swapped.ranks, swapped.chunks, 1, 1, 1, 0))
        return
    with pytest.raises(ScheduleError, match=r"stands before|wait for each other"):
        check_schedule(swapped)


@settings(max_examples=120, deadline=None)
@given(any_schedule, st.data())
def test_a_cap_is_kept_to_the_unit(schedule, data):
    memory = [data.draw(st.floats(0.1, 3.0)) for _ in range(schedule.stages)]
    most = max(peak_memory(schedule, memory))
    check_schedule(schedule, memory, cap=most / schedule.ranks)
    with pytest.raises(ScheduleError, match="allows"):
        check_schedule(schedule, memory, cap=0.99 * most / schedule.ranks)


def test_the_circle_of_waiting_actions_is_told():
    """Each rank puts the micro-batch first whose result the other needs last."""
    f = lambda s, m: Action("F", s, m)  # noqa: E731
    b = lambda s, m: Action("B", s, m)  # noqa: E731
    schedule = Schedule("crossed", (0, 1), 2, ((f(0, 0), b(0, 0), f(0, 1), b(0, 1)), (f(1, 1), f(1, 0), b(1, 0), b(1, 1))))
    with pytest.raises(ScheduleError) as caught:
        check_schedule(schedule)
    assert "0B0 needs 1B0, which rank 1 does after 1F1; 1F1 needs 0F1, which rank 0 does after 0B0" in str(caught.value)
    assert isinstance(caught.value, ConfigError)


def test_the_cap_names_rank_action_need_and_cap():
    with pytest.raises(ScheduleError, match=r"rank 0 holds 4 units at 0F3, and the cap of 0\.5 × 1F1B's allows 2; raise it to 1"):
        check_schedule(named_schedule("1f1b", 4, 8), cap=0.5)


def test_a_backward_both_whole_and_in_parts_is_refused():
    row = (Action("F", 0, 0), Action("I", 0, 0), Action("B", 0, 0))
    with pytest.raises(ScheduleError, match="0B0 is the whole backward, and 0I0 does a part of it again"):
        check_schedule(Schedule("both", (0,), 1, (row,)))


@pytest.mark.parametrize(
    ("rank_of", "action", "told"),
    [
        ((0, 2), Action("F", 0, 0), "stage 1 lies on rank 2"),
        ((0, 1), Action("F", 2, 0), "names stage 2"),
        ((0, 1), Action("F", 0, 1), "names micro-batch 1"),
        ((0, 1), Action("X", 0, 0), "is no action"),
    ],
)
def test_actions_that_name_nothing_there_is_are_refused(rank_of, action, told):
    with pytest.raises(ScheduleError, match=told):
        check_schedule(Schedule("odd", rank_of, 1, ((action,), ())))
