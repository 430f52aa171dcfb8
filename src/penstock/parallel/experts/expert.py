"""Expert parallelism: experts live on different ranks, and tokens travel to them and back (GShard, Lepikhin et al., arXiv 2006.16668).

`slots[place]` names the experts that a place on the expert axis holds, in the order of its stack's dim 0; an expert may have several slots
(replicas), anywhere. A rank's rows come sorted by expert. On their way they are

    divided over the replicas (`divide`, a pure function of all ranks' counts), ordered by place and slot,
    sent by one all-to-all, sorted by the receiver's slots, multiplied there by the local stack of experts,

and they return by the same way backwards, to the caller's order. A row meets the same arithmetic wherever its expert lives, no row is dropped and
nothing is padded; a rank may send or receive none. What is not replicated needs no gradient exchange over the expert axis: an expert's rank
has seen the rows of all. Replicas have each seen a part, and `slots.sync_replicas` adds these up.

Cost per layer and direction of the pass: two all-to-alls of the routed rows, (p - 1)/p of them leaving the rank if routing is even; forward
also an all-gather of the counts, 8 bytes an expert and rank, which the host waits for, as it must know how many rows come. When not to
use it: where all experts fit every rank, as rows that stay travel free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.comm import Axis, exchange, opaque
from penstock.models.decoder import Decoder
from penstock.models.grouped import combine, dispatch
from penstock.models.moe import Experts, MixtureOfExperts
from penstock.parallel.experts.balance import Slots, even_slots
from penstock.parallel.mesh import Mesh


@dataclass(frozen=True)
class _Route:
    """The way of one call's rows: how many go to and come from each place, and the two orders in which they are laid."""

    send: list[int]
    receive: list[int]
    by_place: Tensor
    by_slot: Tensor
    ends_l: Tensor


class ExpertTransport:
    """A `models.moe.Transport` for experts that live on the ranks of `axis` as `slots` say; the stack it is called with holds the local slots."""

    def __init__(self, axis: Axis, slots: Slots, device: torch.device) -> None:
        """Every rank of `axis` must give the same `slots`, one tuple of experts for each of its places, and every expert a slot at least."""
        assert len(slots) == axis.size, f"slots for {len(slots)} places on an axis of {axis.size} ranks"
        flat = [expert for place in slots for expert in place]
        assert set(flat) == set(range(max(flat) + 1)), f"an expert has no slot in {slots}"
        self._axis = axis
        start = sum(len(place) for place in slots[: axis.index])
        self._mine = slice(start, start + len(slots[axis.index]))
        self._place_s = torch.tensor([place for place, held in enumerate(slots) for _ in held], device=device)
        self._expert_s = torch.tensor(flat, device=device)
        self._replica_s = torch.tensor([flat[:slot].count(expert) for slot, expert in enumerate(flat)], device=device)
        self._replicas_s = torch.tensor([flat.count(expert) for expert in flat], device=device)
        self._by_expert = self._expert_s.argsort(stable=True)

    @opaque
    def __call__(self, x_md: Tensor, load_e: Tensor, experts: Experts) -> Tensor:
        """Map rows (m, d), sorted by expert, `load_e[e]` of them for expert e, to the experts' outputs in the same order."""
        route = self._route(load_e, len(x_md))
        there_nd = exchange(dispatch(x_md, route.by_place, 1), self._axis, route.send, route.receive, "experts")
        y_nd = experts(dispatch(there_nd, route.by_slot, 1), route.ends_l)
        back_md = exchange(combine(y_nd, route.by_slot), self._axis, route.receive, route.send, "experts")
        return combine(back_md, route.by_place)

    def _route(self, load_e: Tensor, rows: int) -> _Route:
        me, places = self._axis.index, self._axis.size
        count_pe = self._axis.all_gather(load_e.unsqueeze(0), 0, "expert_counts")
        part_ps = divide(count_pe, self._expert_s, self._replica_s, self._replicas_s)
        between_pp = part_ps.new_zeros(places, places).index_add_(1, self._place_s, part_ps)
        send, receive = torch.stack([between_pp[me], between_pp[:, me]]).tolist()
        start_s = torch.empty_like(part_ps[me])
        start_s[self._by_expert] = _starts(part_ps[me, self._by_expert])
        come_pl = part_ps[:, self._mine]
        by_slot = _runs(_starts(come_pl.flatten()).view_as(come_pl).t().flatten(), come_pl.t().flatten(), sum(receive))
        return _Route(send, receive, _runs(start_s, part_ps[me], rows), by_slot, come_pl.sum(0).cumsum(0).to(torch.int32))


def divide(count_pe: Tensor, expert_s: Tensor, replica_s: Tensor, replicas_s: Tensor) -> Tensor:
    """Rows that each source p sends to each slot s, (p, s), from its rows for each expert (p, e).

    Slot s is number `replica_s[s]` of the `replicas_s[s]` that hold expert `expert_s[s]`. Every source deals its rows of an expert evenly over
    the replicas, and begins with the one at which the source before it stopped (the first source with a replica that depends on the
    expert), so that also what the replicas get from all sources together differs by one row at most.
    """
    count_ps = count_pe[:, expert_s]
    before_ps = count_ps.cumsum(0) - count_ps
    turn_ps = (replica_s - before_ps - expert_s) % replicas_s
    return count_ps // replicas_s + (turn_ps < count_ps % replicas_s)


def spread_experts(decoder: Decoder, mesh: Mesh, slots: Mapping[str, Slots] | None = None) -> None:
    """Give every mixture of experts of `decoder` the transport to where its experts live: `slots[block]`, or the even cut of `Split`.

    The stacks of experts are the caller's to cut, as `plan_weights` with the same `slots` says.
    """
    axis = mesh.axis("expert")
    for name, block in decoder.blocks.items():
        if isinstance(block.ffn, MixtureOfExperts):
            placed = (slots or {}).get(name) or even_slots(decoder.model.moe.experts, axis.size)
            block.ffn.transport = ExpertTransport(axis, placed, mesh.world.device)


def _starts(length_s: Tensor) -> Tensor:
    return length_s.cumsum(0) - length_s


def _runs(start_s: Tensor, length_s: Tensor, rows: int) -> Tensor:
    """The indices `start_s[s]`, `start_s[s] + 1`, …, `length_s[s]` of them, for each s in turn; `rows` in all."""
    shift_n = torch.repeat_interleave(start_s - _starts(length_s), length_s, output_size=rows)
    return shift_n + torch.arange(rows, device=start_s.device)
