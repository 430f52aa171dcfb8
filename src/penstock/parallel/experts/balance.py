"""Where experts live: slots on the places of the expert axis, some experts in several, so that every place has the same work.

A place has so many slots, together more than there are experts. An expert's load (tokens routed to it) splits evenly over its slots, and a place's
load is the sum over its own; the step waits for the place with the most.

`eplb_slots` is DeepSeek's greedy algorithm (github.com/deepseek-ai/EPLB, its "global" policy, by its public description): spare slots one by
one to the expert with the most load per replica; then replicas, heaviest first, each to the place with the least load that has a free slot.
`balanced_slots` begins with that and searches on from the busiest place: exchange one or two slots with another place, or give one of its
experts a further replica at the cost of another expert that has several. Every step lowers the maximum or the number of places at
it, so the result is never above EPLB's; it ends where no step helps or the maximum is within `GOOD` of the mean.

All are pure functions of the loads: ranks that run the same numpy find the same slots from the same loads, and nothing is sent.
Cost: milliseconds a layer where exchanges suffice, tenths of a second for 32 or 64 experts and up to some seconds for 256 where replicas have to
change. When not to use it: where the routers are balanced already, as a move sends every changed slot's weights and moments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.config import ConfigError
from penstock.parallel.placement import part

#: For each place on the expert axis the experts that it holds, in the order of its stack's dim 0.
Slots = tuple[tuple[int, ...], ...]
Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Busiest place over the mean at which the search is content.
GOOD = 1.002
#: Experts tried as givers, and as takers, of a replica in a step of the search.
TRIED = 6
#: Most slots a place for which pairs are exchanged; with more, single slots are choice enough.
PAIRED = 12


def even_slots(experts: int, places: int) -> Slots:
    """The cut without replicas that `Split(0, ("expert",))` makes: consecutive experts, the last places with fewer or none."""
    cuts = (part(experts, places, place) for place in range(places))
    return tuple(tuple(range(start, start + length)) for start, length in cuts)


def place_loads(load_e: NDArray, slots: Slots) -> Array:
    """Load of every place (p,): each expert's load (e,) is divided evenly over its slots."""
    count_e = np.bincount([expert for place in slots for expert in place], minlength=len(load_e))
    share_e = np.asarray(load_e, np.float64) / np.maximum(count_e, 1)
    return np.array([sum(share_e[expert] for expert in sorted(place)) for place in slots], np.float64)


def eplb_slots(load_e: NDArray, places: int, slots_per_place: int) -> Slots:
    """DeepSeek's EPLB placement of experts with loads (e,); raises `ConfigError` where the slots do not hold all experts."""
    load_e = np.asarray(load_e, np.float64)
    count_e = _replicate(load_e, places * slots_per_place)
    return _as_slots(_pack(load_e / count_e, count_e, places, slots_per_place))


def balanced_slots(load_e: NDArray, places: int, slots_per_place: int) -> Slots:
    """The placement that search finds from EPLB's, never with a busier place; raises `ConfigError` where the slots do not hold all experts."""
    load_e = np.asarray(load_e, np.float64)
    first = eplb_slots(load_e, places, slots_per_place)
    held_pk, count_e = np.array(first), np.bincount(np.ravel(first), minlength=len(load_e))
    held_pk = _exchange_slots(held_pk, load_e / count_e)
    while (better := _change_replicas(held_pk, load_e)) is not None:
        held_pk = better
    found = _as_slots(held_pk)
    return min(first, found, key=lambda slots: place_loads(load_e, slots).max())


def _change_replicas(held_pk: Index, load_e: Array) -> Index | None:
    """The best placement with one replica taken from an expert and given to another, or None if none beats `held_pk`."""
    count_e = np.bincount(held_pk.ravel(), minlength=len(load_e))
    best, low = None, _busiest(held_pk, load_e / count_e)
    if low <= GOOD * load_e.sum() / len(held_pk):
        return None
    for giver, taker in _candidates(held_pk, count_e, load_e):
        changed_e = count_e.copy()
        changed_e[giver] -= 1
        changed_e[taker] += 1
        share_e = load_e / changed_e
        for start_pk in (_replace_one(held_pk, giver, taker, share_e), _pack(share_e, changed_e, *held_pk.shape)):
            tried_pk = _exchange_slots(start_pk, share_e)
            if (high := _busiest(tried_pk, share_e)) < low * (1 - 1e-9):
                best, low = tried_pk, high
    return best


def _candidates(held_pk: Index, count_e: Index, load_e: Array) -> list[tuple[int, int]]:
    """Pairs (giver, taker): experts that lose little by a replica less, and those with the most load a replica or on the busiest place."""
    share_e = load_e / count_e
    givers = [e for e in np.argsort(load_e / np.maximum(count_e - 1, 1e-9), kind="stable") if count_e[e] > 1][:TRIED]
    busiest = held_pk[np.argmax(share_e[held_pk].sum(1))]
    takers = list(dict.fromkeys([*np.argsort(-share_e, kind="stable")[:TRIED].tolist(), *busiest.tolist()]))
    return [(int(giver), int(taker)) for giver in givers for taker in takers if giver != taker]


def _replace_one(held_pk: Index, giver: int, taker: int, share_e: Array) -> Index:
    """`held_pk` with the giver's slot on the least loaded of its places handed to the taker."""
    load_p = np.where((held_pk == giver).any(1), share_e[held_pk].sum(1), np.inf)
    place = np.argmin(load_p)
    changed_pk = held_pk.copy()
    changed_pk[place, np.argmax(held_pk[place] == giver)] = taker
    return changed_pk


def _busiest(held_pk: Index, share_e: Array) -> float:
    return float(share_e[held_pk].sum(1).max())


def _exchange_slots(held_pk: Index, share_e: Array) -> Index:
    """Exchange slots of the busiest place with those of another as long as the higher of the two falls; single slots, or else pairs."""
    held_pk = held_pk.copy()
    room = held_pk.shape[1]
    pairs = np.stack(np.triu_indices(room, 1), 1) if 2 <= room <= PAIRED else np.empty((0, 2), np.int64)
    while True:
        share_pk = share_e[held_pk]
        load_p = share_pk.sum(1)
        top = np.argmax(load_p)
        if load_p[top] <= GOOD * load_p.mean():
            return held_pk
        for group_gk in (np.arange(room)[:, None], pairs):
            group_pg = share_pk[:, group_gk].sum(2)
            if not group_pg.size:
                return held_pk
            shift_gpg = group_pg[top][:, None, None] - group_pg
            high_gpg = np.maximum(load_p[top] - shift_gpg, load_p[:, None] + shift_gpg)
            ours, other, theirs = np.unravel_index(np.argmin(high_gpg), high_gpg.shape)
            if high_gpg[ours, other, theirs] < load_p[top] * (1 - 1e-9):
                mine, his = group_gk[ours], group_gk[theirs]
                held_pk[top, mine], held_pk[other, his] = held_pk[other, his].copy(), held_pk[top, mine].copy()
                break
        else:
            return held_pk


def _replicate(load_e: Array, slots: int) -> Index:
    """Replicas of each expert: each spare slot to the one with the most load per replica."""
    if slots < len(load_e):
        raise ConfigError(f"{slots} slots do not hold {len(load_e)} experts; give every place more slots")
    count_e = np.ones(len(load_e), np.int64)
    for _ in range(slots - len(load_e)):
        count_e[np.argmax(load_e / count_e)] += 1
    return count_e


def _pack(share_e: Array, count_e: Index, places: int, room: int) -> Index:
    """Experts in the slots of each place (p, k): heaviest replica first, each to the least loaded place with room."""
    replicas = np.repeat(np.arange(len(share_e)), count_e)
    held_pk = np.zeros((places, room), np.int64)
    load_p, used_p = np.zeros(places), np.zeros(places, np.int64)
    for expert in replicas[np.argsort(-share_e[replicas], kind="stable")]:
        place = np.argmin(np.where(used_p < room, load_p, np.inf))
        held_pk[place, used_p[place]] = expert
        used_p[place] += 1
        load_p[place] += share_e[expert]
    return held_pk


def _as_slots(held_pk: Index) -> Slots:
    return tuple(tuple(sorted(place)) for place in held_pk.tolist())
