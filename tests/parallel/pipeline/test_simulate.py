"""The simulator against times worked out by hand and the published formula of 1F1B."""

import pytest

from penstock.parallel.pipeline.schedule import Action, Costs, Schedule, wire
from penstock.parallel.pipeline.simulate import simulate


def schedule(ranks, micros, rows, rank_of=None):
    """Rows are text such as "0F0 0F1 0B0"."""
    actions = tuple(tuple(parse(cell) for cell in row.split()) for row in rows)
    return Schedule("hand", rank_of or wire(ranks, 1, "loop"), micros, actions)


def parse(cell):
    at = next(i for i, letter in enumerate(cell) if letter.isalpha())
    return Action(cell[at], int(cell[:at]), int(cell[at + 1 :]))


def one_f_one_b(ranks, micros):
    rows = []
    for rank in range(ranks):
        warm = min(ranks - 1 - rank, micros)
        row = [Action("F", rank, k) for k in range(warm)]
        for k in range(micros):
            row += [Action("F", rank, k + warm)] if k + warm < micros else []
            row += [Action("B", rank, k)]
        rows.append(tuple(row))
    return Schedule("1f1b", wire(ranks, 1, "loop"), micros, tuple(rows))


def test_two_stages_by_hand():
    hand = schedule(2, 1, ["0F0 0I0 0W0", "1F0 1B0"])
    timing = simulate(hand, Costs((1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (0.5,), (1.0, 1.0)))
    assert timing.spans == (((0.0, 1.0), (14.0, 17.0), (17.0, 22.0)), ((1.5, 3.5), (3.5, 13.5)))
    assert timing.makespan == 22.0 and timing.work == (9.0, 12.0) and timing.peak_memory == (1.0, 1.0)
    assert timing.bubble == pytest.approx(1 - 21 / 44) and timing.period == pytest.approx(22.0)  # F0 of the next step waits for W0 of this


def test_no_transfer_is_paid_within_a_rank_and_memory_is_held_until_the_weight_gradient():
    rows = ["0F0 0F1 1F0 1F1 1I0 0I0 1I1 0I1 1W0 0W0 1W1 0W1"]
    timing = simulate(schedule(1, 2, rows, (0, 0)), Costs.even(1, 2, 1.0, 1.0, 1.0, 9.0))
    assert timing.makespan == timing.period == 6.0 and timing.bubble == 0.0 and timing.peak_memory == (2.0,)


@pytest.mark.parametrize(("ranks", "micros"), [(2, 2), (4, 8), (8, 16), (8, 8)])
def test_1f1b_idles_for_its_formula(ranks, micros):
    timing = simulate(one_f_one_b(ranks, micros), Costs.even(ranks, 1, 1.0, 1.2, 0.8, 0.0))
    assert timing.makespan - micros * 3.0 == pytest.approx((ranks - 1) * 3.0)
    assert timing.peak_memory == tuple(float(min(ranks - rank, micros)) for rank in range(ranks))


def test_period_is_the_mean_of_many_steps():
    many = 60
    timing = simulate(one_f_one_b(4, 6), Costs((1.0, 2.0, 1.5, 1.0), (1.0, 1.0, 2.0, 1.5), (0.5, 1.0, 1.0, 1.0), (0.1, 0.2, 0.3), (1.0,) * 4), steps=many)
    ends = [spans[len(spans) // many * step - 1][1] for spans in timing.spans for step in (many // 2, many)]
    assert timing.period == pytest.approx((ends[1] - ends[0]) / (many // 2))
    assert timing.makespan + 1e-9 >= timing.period >= max(timing.work)


def test_a_deadlock_names_the_actions_that_wait():
    with pytest.raises(ValueError, match="0I0 on rank 0, 1F0 on rank 1"):
        simulate(schedule(2, 1, ["0I0 0F0 0W0", "1F0 1B0"]), Costs.even(2, 1, 1.0, 1.0, 1.0, 0.0))


def test_a_missing_action_is_a_deadlock():
    with pytest.raises(ValueError, match="1B0 on rank 1"):
        simulate(schedule(2, 1, ["0F0 0B0", "1B0"]), Costs.even(2, 1, 1.0, 1.0, 1.0, 0.0))
