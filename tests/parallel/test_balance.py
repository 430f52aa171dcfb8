"""Experts placed by load: every slot full, every expert placed, never a busier place than EPLB's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.config import ConfigError
from penstock.parallel.experts.balance import balanced_slots, eplb_slots, even_slots, place_loads


@st.composite
def placements(draw):
    """Loads, places and slots a place, enough for all experts."""
    loads = draw(st.lists(st.one_of(st.integers(0, 20), st.integers(0, 10**6)), min_size=1, max_size=24))
    places = draw(st.integers(1, 6))
    least = -(-len(loads) // places)
    return np.array(loads), places, draw(st.integers(least, least + 3))


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(placements())
def test_every_expert_has_a_slot_every_slot_is_full_and_eplb_is_never_better(case):
    load_e, places, room = case
    first, found = eplb_slots(load_e, places, room), balanced_slots(load_e, places, room)
    for slots in (first, found):
        assert [len(place) for place in slots] == [room] * places
        assert {expert for place in slots for expert in place} == set(range(len(load_e)))
    assert place_loads(load_e, found).max() <= place_loads(load_e, first).max()
    assert place_loads(load_e, found).sum() == pytest.approx(load_e.sum())
    assert balanced_slots(load_e.copy(), places, room) == found


def test_eplb_gives_spare_slots_to_the_hottest_and_packs_the_heaviest_first():
    # By hand: 60 gets the first spare slot (30, 30), then 40 (20, 20); packed 30 | 30, 20 | 20, 10 | 10, 10 | 10 by load and room.
    slots = eplb_slots(np.array([60, 40, 10, 10]), 2, 3)
    assert slots == ((0, 1, 2), (0, 1, 3))
    assert place_loads(np.array([60, 40, 10, 10]), slots).tolist() == [60.0, 60.0]


def test_search_exchanges_slots_where_greedy_packing_ends_uneven():
    load_e = np.array([3, 3, 2, 2, 2, 0])
    assert place_loads(load_e, eplb_slots(load_e, 2, 3)).tolist() == [7, 5]
    assert place_loads(load_e, balanced_slots(load_e, 2, 3)).tolist() == [6, 6]


def test_search_takes_a_replica_back_where_no_exchange_helps():
    load_e = np.array([9, 4, 1, 1])  # greedy: 9 in three slots, two of them on one place; even: 9 in two slots, each beside half of a 1
    assert place_loads(load_e, eplb_slots(load_e, 3, 2)).max() == 6
    assert place_loads(load_e, balanced_slots(load_e, 3, 2)).tolist() == [5, 5, 5]


@pytest.mark.parametrize("law", [0.5, 1.0, 1.5])
def test_uneven_loads_with_a_quarter_of_spare_slots_end_within_three_percent_of_the_mean(law):
    for seed in range(3):
        generator = np.random.default_rng(seed)
        load_e = np.round(generator.permutation(1e6 / np.arange(1, 33) ** law) * generator.uniform(0.7, 1.3, 32))
        loads = place_loads(load_e, balanced_slots(load_e, 8, 5))
        assert loads.max() / loads.mean() <= 1.03


def test_the_even_cut_leaves_the_last_places_short_and_too_few_slots_are_refused():
    assert even_slots(5, 2) == ((0, 1, 2), (3, 4))
    assert even_slots(6, 4) == ((0, 1), (2, 3), (4, 5), ())
    with pytest.raises(ConfigError, match="7 experts"):
        balanced_slots(np.ones(7), 2, 3)
