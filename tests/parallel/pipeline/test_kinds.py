"""The named kinds simulate to the figures that their papers publish, hold the memory they publish, and are what torch makes of the same names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.parallel.pipeline.check import ScheduleError, check_schedule, peak_memory
from penstock.parallel.pipeline.kinds import KINDS, candidates, named_schedule
from penstock.parallel.pipeline.schedule import Costs
from penstock.parallel.pipeline.simulate import simulate
from penstock.parallel.pipeline.torch_ir import from_csv

TORCH = {"gpipe": "GPipe", "interleaved": "Interleaved1F1B", "interleaved-zb": "InterleavedZeroBubble", "zb-v": "ZBVZeroBubble", "dualpipe-v": "DualPipeV"}
EVEN = (1.0, 1.0, 1.0, 0.0)
UNEVEN = (1.0, 1.2, 0.8, 0.05)


def timed(schedule, costs):
    return simulate(schedule, Costs.even(schedule.ranks, schedule.chunks, *costs))


def idle(schedule, costs):
    """Time that each rank idles in a step."""
    timing = timed(schedule, costs)
    return timing.makespan - sum(timing.work) / len(timing.work)


def torch_schedule(kind, ranks, micro_batches, chunks):
    from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

    rows = get_schedule_ops(TORCH[kind], ranks, micro_batches, chunks)
    return from_csv("\n".join(",".join("" if a is None else str(a) for a in row) for row in rows))


@pytest.mark.parametrize("f, i, w", [(1.0, 1.0, 1.0), (1.0, 1.5, 0.5), (0.7, 1.3, 1.1)])
@pytest.mark.parametrize("ranks, micro_batches", [(4, 8), (8, 32)])
def test_bubbles_are_the_published_formulas(ranks, micro_batches, f, i, w):
    """Qi et al., arXiv 2401.10241, table 1 and arXiv 2104.04473, section 2.2, in our terms: I and W are the two halves of the backward."""
    costs, whole = (f, i, w, 0.0), (ranks - 1) * (f + i + w)
    assert idle(named_schedule("gpipe", ranks, micro_batches), costs) == pytest.approx(whole)
    assert idle(named_schedule("1f1b", ranks, micro_batches), costs) == pytest.approx(whole)
    for chunks in (2, 4):
        assert idle(named_schedule("interleaved", ranks, micro_batches, chunks), costs) == pytest.approx(whole / chunks)


@pytest.mark.parametrize("ranks, micro_batches", [(2, 4), (4, 8), (8, 16), (8, 32)])
def test_zero_bubble_kinds_idle_as_published(ranks, micro_batches):
    hops = ranks - 1
    for f, i, w in ((1.0, 1.0, 1.0), (1.0, 1.0, 0.8), (1.2, 1.0, 0.9)):
        assert idle(named_schedule("zb-h1", ranks, micro_batches), (f, i, w, 0.0)) == pytest.approx(hops * (f + i - w))
    zb_v = timed(named_schedule("zb-v", ranks, micro_batches), EVEN)
    assert zb_v.steady_bubble == pytest.approx(0.0)
    assert zb_v.makespan - zb_v.work[0] == pytest.approx(hops / 2)  # the first micro-batch's way to the last rank
    one_f_one_b = hops * 3
    assert idle(named_schedule("v-half", ranks, micro_batches), EVEN) <= one_f_one_b / 2
    assert idle(named_schedule("v-min", ranks, micro_batches), EVEN) <= one_f_one_b * 2 / 3 + 1


@pytest.mark.parametrize("kind, micro_batches, barrier, steady", [
    ("1f1b", 16, 0.324, 0.324), ("interleaved", 16, 0.200, 0.200), ("interleaved-zb", 16, 0.122, 0.122), ("zb-v", 16, 0.109, 0.091),
    ("1f1b", 32, 0.203, 0.203), ("interleaved", 32, 0.111, 0.111), ("interleaved-zb", 32, 0.065, 0.065), ("zb-v", 32, 0.057, 0.048),
])  # fmt: skip
def test_bubbles_of_eight_ranks_at_real_ratios(kind, micro_batches, barrier, steady):
    """Known from replaying torch 2.13's schedules in an independent simulator."""
    timing = timed(named_schedule(kind, 8, micro_batches), UNEVEN)
    assert (timing.bubble, timing.steady_bubble) == (pytest.approx(barrier, abs=6e-4), pytest.approx(steady, abs=6e-4))


@pytest.mark.parametrize("ranks", [2, 4, 7, 8, 16])
def test_memory_is_as_published(ranks):
    """In units of one rank's share of a micro-batch; 1F1B holds as many as there are ranks."""

    def most(kind, chunks=0):
        return max(peak_memory(named_schedule(kind, ranks, 4 * ranks, chunks)))

    assert most("gpipe") == 4 * ranks
    assert peak_memory(named_schedule("1f1b", ranks, 4 * ranks)) == tuple(range(ranks, 0, -1))
    for chunks in (2, 3):
        assert most("interleaved", chunks) == pytest.approx(ranks * (1 + (ranks - 1) / (ranks * chunks)))
        assert most("interleaved-zb", chunks) == pytest.approx(ranks)
    assert peak_memory(named_schedule("zb-h1", ranks, 4 * ranks)) == (ranks,) * ranks
    assert most("zb-v") <= ranks
    assert most("v-half") <= ranks // 2 + 1
    assert most("v-min") <= ranks / 3 + 1.5
    assert most("dualpipe-v") <= ranks + 0.5


@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize("ranks, micro_batches", [(2, 4), (4, 8), (4, 10), (8, 16), (8, 20)])
def test_torchs_own_schedules_pass_the_checker_and_are_ours(kind, ranks, micro_batches):
    chunks = KINDS[kind].chunks
    theirs = torch_schedule(kind, ranks, micro_batches, chunks)
    check_schedule(theirs)
    ours = named_schedule(kind, ranks, micro_batches)
    assert ours.rank_of == theirs.rank_of
    for costs in (EVEN, UNEVEN):
        assert timed(ours, costs).bubble <= timed(theirs, costs).bubble + 1e-9
        assert max(timed(ours, costs).peak_memory) <= max(timed(theirs, costs).peak_memory)
    assert ours.actions == theirs.actions


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 9), st.integers(1, 24), st.integers(0, 5))
def test_a_kind_makes_what_can_be_run_or_says_what_it_takes(kind, ranks, micro_batches, chunks):
    try:
        schedule = named_schedule(kind, ranks, micro_batches, chunks)
    except ScheduleError as error:
        assert "takes" in str(error)
        return
    check_schedule(schedule)
    assert (schedule.ranks, schedule.micro_batches) == (ranks, micro_batches)
    assert schedule.chunks == (chunks or KINDS[kind].chunks)


def test_what_a_kind_cannot_take_is_refused_with_what_it_can():
    with pytest.raises(ScheduleError, match="dualpipe-v over 8 ranks takes 16 micro-batches or more, not 12"):
        named_schedule("dualpipe-v", 8, 12)
    with pytest.raises(ScheduleError, match="interleaved takes 2 or more chunks a rank, not 1"):
        named_schedule("interleaved", 4, 8, 1)
    with pytest.raises(ScheduleError, match="zb-v takes 2 chunks a rank, not 3"):
        named_schedule("zb-v", 4, 8, 3)
    with pytest.raises(ScheduleError, match=r"no kind of schedule '1fb1', only gpipe, .* \(did you mean '1f1b'\?\)"):
        named_schedule("1fb1", 4, 8)
    with pytest.raises(ScheduleError, match="at least one rank and one micro-batch"):
        named_schedule("gpipe", 4, 0)


def test_candidates_are_the_kinds_that_fit():
    assert {s.kind for s in candidates(4, 8, 1)} == {"gpipe", "1f1b", "zb-h1"}
    assert {s.kind for s in candidates(4, 8, 2)} == {"interleaved", "interleaved-zb", "zb-v", "v-half", "v-min", "dualpipe-v"}
    assert {s.kind for s in candidates(4, 7, 2)} == {"interleaved", "interleaved-zb", "zb-v", "v-half", "v-min"}
    assert {(s.kind, s.chunks) for s in candidates(4, 8, 3)} == {("interleaved", 3), ("interleaved-zb", 3)}
