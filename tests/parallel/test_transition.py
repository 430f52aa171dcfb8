"""A state goes from any layout to any other bit for bit, whatever ranks are gone; what no source has is named, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axis_of_threads import on_threads
from penstock.config import load_config
from penstock.models import resolve_model
from penstock.parallel import Layout, Placement, Split, peer_copies, plan_weights, transition
from penstock.parallel.peer_copies import PeerCopies, hand_over, keepers
from penstock.parallel.pipeline.stages import Part, Stages
from penstock.parallel.transition import Copy, carry, find_missing, plan_transition
from store.placements import layouts, placed

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
UNSET = 0x5A


def bits(shape, dtype, seed):
    """A tensor of random bits; those of floats are sometimes no number."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    n_bytes = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def unset(shape, dtype):
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    return torch.full((torch.Size(shape).numel() * dtype.itemsize,), UNSET, dtype=torch.uint8).view(dtype).view(shape)


def same_bits(one, other):
    return one.shape == other.shape and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def local(whole, placement, layout, rank):
    """The tensor that a rank holds of a whole one."""
    boxes = placement.boxes(layout, rank)
    return torch.cat([whole[box.slices] for box in boxes]) if placement.shape else whole.clone()


def state_on(wholes, placements, layout, rank):
    return {name: local(whole, placements[name], layout, rank) for name, whole in wholes.items()}


def after_carry(plan, wholes, before, old, after, new, sources):
    """What every new rank has after `carry`, which begins from unset tensors; and what travelled."""

    def rank(axis):
        held = {source: state_on(wholes, before, old, source) for source, at in sources.items() if axis.index in at}
        mine = {name: unset(after[name].local_shape(new, axis.index), wholes[name].dtype) for name in after}
        carry(plan, held, mine, axis)
        return mine

    return on_threads(rank, new.ranks)


def expected(wholes, missing, after, new, rank):
    """What a rank is to have: the whole's bits, and where they are missing those that it had."""
    left = {name: whole.clone() for name, whole in wholes.items()}
    for name, box in missing:
        left[name][box.slices] = unset(box.sizes, wholes[name].dtype)
    return state_on(left, after, new, rank)


def who_has(placement, layout, sources):
    """For every number of a full tensor, whether some source has it."""
    found = np.zeros(placement.shape, bool)
    for rank, at in sources.items():
        for box in placement.boxes(layout, rank) if at else ():
            found[box.slices] = True
    return found


def check_transition(wholes, before, old, after, new, sources):
    plan = plan_transition(old, before, new, after, sources)
    for name, placement in before.items():
        counts = np.zeros(placement.shape, int)
        for other, box in plan.missing:
            if other == name:
                counts[box.slices] += 1
        assert ((counts == 1) == ~who_has(placement, old, sources)).all() and counts.max(initial=0) <= 1
    assert sorted(plan.missing, key=str) == sorted(find_missing(old, before, sources), key=str)
    states, rounds = after_carry(plan, wholes, before, old, after, new, sources)
    for rank, state in enumerate(states):
        right = expected(wholes, plan.missing, after, new, rank)
        assert not [name for name in state if not same_bits(state[name], right[name])]
    for name, piece in plan.travelling():
        mine = [source for source, at in sources.items() if piece.target in at]
        has = [box for source in mine for box in before[name].boxes(old, source)]
        given_ = next(box for box in before[name].boxes(old, piece.source) if box.numel)
        assert before[name].slots or given_ not in has, "what a rank has is not sent to it"
    for sent in rounds:
        assert all(sum(row) <= 64 for row in (*sent, *zip(*sent)))


@pytest.fixture
def small_rounds(monkeypatch):
    monkeypatch.setattr(transition, "ROUND", 64)
    monkeypatch.setattr(peer_copies, "ROUND", 64)
    monkeypatch.setattr(transition, "PIECE", 7)


def sources_of(data, old, new):
    """Each old rank gone, or kept by one new rank or two."""
    return {rank: data.draw(st.sets(st.integers(0, new - 1), max_size=2), label=f"rank {rank} is kept by") for rank in range(old)}


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_number_arrives_bit_for_bit_or_is_missing(small_rounds, data):
    old, new = data.draw(layouts(8)), data.draw(layouts(8))
    before = {f"t{i}": data.draw(placed(old)) for i in range(3)}
    after = {name: data.draw(placed(new, shape=placement.shape)) for name, placement in before.items()}
    wholes = {name: bits(placement.shape, data.draw(st.sampled_from(DTYPES)), i) for i, (name, placement) in enumerate(before.items())}
    check_transition(wholes, before, old, after, new, sources_of(data, old.ranks, new.ranks))


def stages_of(ranks, tied=True):
    """Four layers over a pipeline; with a wave of two chunks on two ranks the first and the last stage are on one."""
    parts = tuple(Part(range(4 * i // ranks, 4 * (i + 1) // ranks), i == 0, i == ranks - 1) for i in range(ranks))
    return Stages(parts, tuple(range(ranks)), tied) if ranks > 1 else None


MODEL = ["model.layers=4", "model.dim=8", "model.heads=4", "model.kv_heads=2", "model.head_dim=2", "model.ffn_dim=7", "model.moe.experts=4",
         "model.moe.first_dense=1", "model.moe.dim=6", "model.moe.active=2", "model.tie_embeddings=true"]  # fmt: skip
SHAPES = {
    "embedding.weight": (19, 8), "norm.weight": (8,),
    **{f"blocks.{i}.{name}": shape for i in range(4) for name, shape in {
        "attention.wq.weight": (8, 8), "attention.wk.weight": (4, 8), "attention.wo.weight": (8, 8), "attention_norm.weight": (8,)}.items()},
    "blocks.0.ffn.up.weight": (7, 8), "blocks.0.ffn.down.weight": (8, 7),
    **{f"blocks.{i}.ffn.{name}": shape for i in range(1, 4) for name, shape in {"router.weight": (4, 8), "experts.up_e": (4, 6, 8), "experts.down_e": (4, 8, 6)}.items()},
}  # fmt: skip
REAL = {
    "one rank": (Layout(), ()),
    "replicas": (Layout(replicate=3), ()),
    "nodes": (Layout(node=2, replicate=2), ()),
    "zero 1": (Layout(shard=4, zero=1), ()),
    "zero 2, replicas": (Layout(shard=2, replicate=2, zero=2), ()),
    "zero 3": (Layout(shard=5), ()),
    "1-D": (Layout(row=4), ()),
    "2-D, shards": (Layout(row=2, column=2, shard=2, topology="2d"), ()),
    "2.5-D": (Layout(row=2, column=2, depth=2, topology="2.5d"), ()),
    "pipeline": (Layout(pipeline=4), ()),
    "pipeline of shards": (Layout(pipeline=2, shard=3), ()),
    "experts, context": (Layout(shard=4, context=2, expert=4), ()),
    "experts in places": (Layout(replicate=4, expert=4), ((0, 1), (2,), (3, 0), (1,))),
    "experts in places of a pipeline": (Layout(pipeline=2, replicate=2, row=2, expert=2), ((3, 0, 2), (1, 2))),
}  # fmt: skip


def real_placements(which):
    layout, slots = REAL[which]
    model = resolve_model(load_config(None, MODEL).model, 19)
    return layout, plan_weights(model, layout, SHAPES, {str(i): slots for i in (1, 2)} if slots else None, stages_of(layout.pipeline))


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_model_goes_from_any_layout_to_any_other(small_rounds, data):
    (old, before), (new, after) = (real_placements(data.draw(st.sampled_from(sorted(REAL)))) for _ in range(2))
    wholes = {name: bits(shape, torch.float32, i) for i, (name, shape) in enumerate(SHAPES.items())}
    alive = data.draw(st.sets(st.integers(0, old.ranks - 1), min_size=1), label="survivors")
    kept = dict(zip(sorted(alive), data.draw(st.permutations(range(new.ranks)))))
    check_transition(wholes, before, old, after, new, {rank: ({kept[rank]} if rank in kept else set()) for rank in range(old.ranks)})


def given_by(plan):
    burden = {}
    for _, piece in plan.travelling():
        burden[piece.giver] = burden.get(piece.giver, 0) + piece.numel
    return burden


def test_replicas_share_what_a_newcomer_needs_and_those_who_stay_receive_nothing():
    tensors = {f"t{i}": Placement((40, 30)) for i in range(9)}
    plan = plan_transition(Layout(replicate=4), tensors, Layout(replicate=4), tensors, {0: {0}, 1: {1}, 3: {2}})
    assert given_by(plan) == {0: 3600, 1: 3600, 2: 3600} and {piece.target for _, piece in plan.travelling()} == {3}
    assert not plan.missing


def test_one_large_tensor_comes_in_pieces_from_all_that_have_it(monkeypatch):
    monkeypatch.setattr(transition, "PIECE", 100)
    plan = plan_transition(Layout(replicate=2), {"t": Placement((64, 64))}, Layout(replicate=3), {"t": Placement((64, 64))}, {0: {0}, 1: {1}})
    assert given_by(plan) == {0: 2048, 1: 2048}


def test_what_is_on_the_same_node_is_not_fetched_from_another():
    tensors = {f"t{i}": Placement((8,)) for i in range(5)}
    plan = plan_transition(Layout(replicate=3), tensors, Layout(replicate=4), tensors, {0: {0}, 1: {1}, 2: {2}}, nodes=(0, 0, 1, 1))
    assert given_by(plan) == {2: 40}


def test_a_tensor_of_another_shape_or_name_is_missing_whole_and_an_old_one_is_left_out():
    before, after = {"a": Placement((4, 2)), "gone": Placement((3,))}, {"a": Placement((4, 3)), "new": Placement(())}
    plan = plan_transition(Layout(), before, Layout(), after, {0: {0}})
    assert [(name, box.sizes) for name, box in plan.missing] == [("a", (4, 3)), ("new", ())] and plan.moves == ()


def test_a_plan_prints_as_json_and_is_the_same_wherever_it_is_made():
    (old, before), (new, after) = real_placements("zero 3"), real_placements("pipeline of shards")
    plans = [plan_transition(old, dict(order(before.items())), new, dict(order(after.items())), {0: {1}, 2: {0, 3}}) for order in (list, sorted)]
    assert plans[0].moves == plans[1].moves and set(plans[0].missing) == set(plans[1].missing)
    told = json.loads(json.dumps(plans[0].as_dict()))
    assert told["missing"] and set(told["moves"]) == set(SHAPES)


def test_keepers_are_on_other_nodes_and_share_the_keeping():
    assert keepers(4) == (1, 2, 3, 0) and keepers(1) == ()
    nodes = (0, 0, 0, 1, 1, 1)
    found = keepers(6, nodes)
    assert all(nodes[rank] != nodes[keeper] for rank, keeper in enumerate(found)) and sorted(found) == list(range(6))
    assert keepers(4, (0, 0, 0, 1)) == (3, 3, 3, 0)


def kept_by_peers(wholes, placements, layout, nodes, steps, cut=-1):
    """Every rank's copies after so many steps, at each of which the state has other bits; and what was sent."""

    def rank(axis):
        copies = PeerCopies(state_on(wholes[0], placements, layout, axis.index), placements, layout, axis)
        try:
            for step in range(1, steps + 1):
                copies.keep(step, state_on(wholes[step - 1], placements, layout, axis.index))
        except ConnectionError:
            pass
        return copies

    return on_threads(rank, layout.ranks, nodes, cut)


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_with_copies_of_peers_nothing_is_missing_when_a_rank_or_a_node_is_lost(small_rounds, data):
    which = data.draw(st.sampled_from([which for which in sorted(REAL) if REAL[which][0].ranks > 1]))
    layout, placements = real_placements(which)
    nodes = data.draw(st.sampled_from([(), tuple(rank * 2 // layout.ranks for rank in range(layout.ranks))]))
    wholes = [{name: bits(shape, torch.float32, step) for name, shape in SHAPES.items()} for step in range(3)]
    copies, _ = kept_by_peers(wholes, placements, layout, nodes, 3)
    lost = {data.draw(st.integers(0, layout.ranks - 1), label="lost")}
    if nodes:
        lost = {rank for rank in range(layout.ranks) if nodes[rank] == nodes[min(lost)]}
    alive = {old: new for new, old in enumerate(rank for rank in range(layout.ranks) if rank not in lost)}
    new, after = Layout(replicate=len(alive)), {name: Placement(shape) for name, shape in SHAPES.items()}
    of_new = {at: copies[old] for old, at in alive.items()}
    kept = [Copy(old, at, frozenset(tensors)) for at, mine in of_new.items() for old, tensors in mine.held(3).items() if old in lost]
    plan = plan_transition(layout, placements, new, after, {old: (at,) for old, at in alive.items()}, kept)
    assert not plan.missing
    for step in (2, 3):  # both generations are whole

        def rank(axis, step=step):
            mine = {name: unset(shape, torch.float32) for name, shape in SHAPES.items()}
            carry(plan, of_new[axis.index].held(step), mine, axis)
            return mine

        for state in on_threads(rank, new.ranks)[0]:
            assert not [name for name in state if not same_bits(state[name], wholes[step - 1][name])]


def test_a_copy_that_is_cut_short_leaves_the_one_before_it_whole(small_rounds):
    layout, placements = real_placements("zero 3")
    wholes = [{name: bits(shape, torch.float32, step) for name, shape in SHAPES.items()} for step in range(2)]
    _, rounds = kept_by_peers(wholes, placements, layout, (), 1)
    copies, _ = kept_by_peers(wholes, placements, layout, (), 2, cut=len(rounds) + 2)
    for rank, mine in enumerate(copies):
        assert mine.steps == [1]
        before = (rank - 1) % layout.ranks
        for old, tensors in mine.held(1).items():
            right = state_on(wholes[0], placements, layout, old)
            assert not [name for name in tensors if not same_bits(tensors[name], right[name])]
        assert set(mine.held(1)) == {rank, before}


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_leaving_ranks_hand_over_is_whole_with_those_that_stay(small_rounds, data):
    which = data.draw(st.sampled_from([which for which in sorted(REAL) if REAL[which][0].ranks > 1]))
    layout, placements = real_placements(which)
    wholes = {name: bits(shape, torch.float32, 0) for name, shape in SHAPES.items()}
    stay = data.draw(st.integers(1, layout.ranks - 1), label="stay")

    def leave(axis):
        return hand_over(state_on(wholes, placements, layout, axis.index), placements, layout, axis, range(stay, layout.ranks))

    kept, _ = on_threads(leave, layout.ranks)
    assert not any(kept[stay:]), "who leaves keeps nothing"
    copies = [Copy(old, at, frozenset(tensors)) for at, mine in enumerate(kept[:stay]) for old, tensors in mine.items()]
    after, sources = {name: Placement(shape) for name, shape in SHAPES.items()}, {rank: (rank,) for rank in range(stay)}
    plan = plan_transition(layout, placements, Layout(replicate=stay), after, sources, copies)
    assert not plan.missing
    for mine in kept[:stay]:
        for old, tensors in mine.items():
            right = state_on(wholes, placements, layout, old)
            assert not [name for name in tensors if not same_bits(tensors[name], right[name])]


def test_only_what_has_no_replica_is_sent():
    shard, whole = Placement((8, 4), (Split(0, ("shard",)),)), Placement((5,))
    wholes = [{"cut": bits((8, 4), torch.float32, 0), "whole": bits((5,), torch.float32, 1)}]
    for layout, sent in ((Layout(shard=2), 64), (Layout(shard=2, replicate=2), 0)):
        copies, rounds = kept_by_peers(wholes, {"cut": shard, "whole": whole}, layout, (), 1)
        assert sum(sum(row) for sent_ in rounds for row in sent_) == sent * layout.ranks
        assert copies[0].n_bytes == 2 * (64 + 20 + sent)
    _, rounds = kept_by_peers(wholes, {"cut": shard, "whole": whole}, Layout(shard=2, replicate=2), (0, 0, 1, 1), 1)
    assert not rounds, "the replica is on the other node"
    _, rounds = kept_by_peers(wholes, {"cut": shard, "whole": whole}, replace(Layout(shard=2), row=2), (0, 0, 1, 1), 1)
    assert sum(sum(row) for sent_ in rounds for row in sent_) == 2 * 64, "of two replicas on one node the first sends to the other node"


def test_a_copy_of_some_tensors_is_a_source_of_those_alone():
    cut = Placement((6,), (Split(0, ("shard",)),))
    before = {"a": cut, "b": cut}
    plan = plan_transition(Layout(shard=2), before, Layout(), {name: Placement((6,)) for name in before}, {0: (0,)}, [Copy(1, 0, frozenset("a"))])
    assert [(name, box.offsets, box.sizes) for name, box in plan.missing] == [("b", (3,), (3,))]
