"""A run's state goes through memory to other ranks, layouts and nodes: the same bits, the same losses, and what snapshots do with rows of nodes."""

import json

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from lab.models_to_verify import small_question
from penstock.comm import World
from penstock.config import with_values
from penstock.engine import StopRequest, build_core
from penstock.engine.build import read_state
from penstock.engine.exchange import apart_of, references
from penstock.engine.state import weights_digest
from penstock.engine.step import take_step
from penstock.engine.transition import StateMap, carry_state
from penstock.lab.equivalence import RandomPlan
from penstock.parallel import Copy, Layout, PeerCopies, Placement, Split
from penstock.store import agreed_manifest, save_snapshot


def core_of(world, settings, experts=False, precision="float64"):
    changes = {"optim.ema": 0.9, "model.tie_embeddings": True, "model.layers": 4, "optim.warmup": 0, "precision.compute": precision}
    config = with_values(small_question(experts), changes | settings)
    return build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)


def next_world(world, number, members, store):
    """The world of a generation, of which `members` are ranks of the first in their new order; None for one that is not in it."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if world.rank not in members:
        return None
    rank = members.index(world.rank)
    dist.init_process_group("gloo", store=dist.PrefixStore(f"gen{number}/", store), rank=rank, world_size=len(members))
    return World(rank=rank, size=len(members), local_rank=rank)


def through_generations(world, generations, experts):
    """One step in each generation (members, layout), its state carried from the one before; losses and digests before and after every carry."""
    store, first, core, found, before = dist.distributed_c10d._get_default_store(), world, None, [], ()
    for number, (members, settings) in enumerate(generations):
        here = next_world(first, number, members, store)
        if here is None:
            core = None
        else:
            own, held = StateMap.of(core) if core else None, {before.index(first.rank): core.tensors()} if core else {}
            core = core_of(here, settings, experts)
            if number:
                sources = {old: (members.index(process),) for old, process in enumerate(before) if process in members}
                at = members.index(next(process for process in before if process in members))
                missing = carry_state(core, StateMap.shared(own, here, at), held, sources)
                assert not missing, missing
                digest = weights_digest(core.laid)  # all ranks take part
                assert not own or digest == found[-1][1]
            found.append((take_step(core, number).loss, weights_digest(core.laid)))
        before = members
    return found


def one_process(world, steps, experts):
    core = core_of(world, {}, experts)
    return [take_step(core, step).loss for step in range(steps)]


GENERATIONS = [
    ((0, 1, 2, 3), {"layout.replicate": 2, "layout.shard": 2}),
    ((0, 1, 3), {"layout.shard": 3, "layout.zero": 1}),  # rank 2 is gone, and a replica has its shard
    ((2, 3, 0, 1), {"layout.pipeline": 2, "layout.tensor": 2}),  # it comes back as a newcomer, and is the first
]
WITH_EXPERTS = [
    ((0, 1, 2, 3), {"layout.replicate": 2, "layout.shard": 2, "layout.expert": 2}),
    ((2, 1), {"layout.pipeline": 2}),
    ((0, 3, 2, 1), {"layout.shard": 4, "layout.expert": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("generations", "experts"), [(GENERATIONS, False), (WITH_EXPERTS, True)])
def test_ranks_go_and_come_with_other_layouts_and_training_goes_on(generations, experts):
    alone = run_ranks(one_process, 1, 3, experts)[0]
    results = run_ranks(through_generations, 4, generations, experts)
    losses = {rank: [loss for loss, _ in found] for rank, found in enumerate(results)}
    for rank, found in losses.items():
        steps = [number for number, (members, _) in enumerate(generations) if rank in members]
        assert found == pytest.approx([alone[step] for step in steps], rel=1e-9)


def differing(one, other):
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


def carried_and_loaded(world, folder, before, after):
    """Names of tensors that differ between a state carried to other nodes and one that went through a snapshot; and all that are there."""
    core = core_of(world, before, precision="float32")
    for step in range(2):
        take_step(core, step)
    carried, loaded = core_of(world, after, precision="float32"), core_of(world, after, precision="float32")
    snapshot = save_snapshot(folder, 2, core.tensors(), {}, world, core.placements(), core.layout)
    read_state(loaded, snapshot, agreed_manifest(snapshot, world))
    assert not carry_state(carried, StateMap.of(core), {world.rank: core.tensors()}, {rank: (rank,) for rank in range(world.size)})
    ours, theirs = carried.tensors(), loaded.tensors()
    return differing(ours, theirs), sorted(ours)


TOPK = {"exchange.kind": "topk", "exchange.density": 0.1, "exchange.selection": "exact"}
APART = {"exchange.kind": "periodic", "exchange.every": 3, "exchange.density": 0.5, "optim.ema": 0.0}
TWO, FOUR, ONE = ({"layout.replicate": 4, "exchange.topology": way} for way in ("2x2", "4x1", "flat"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "rows"),
    [
        (TWO | TOPK, FOUR | TOPK, ".withheld"),
        (FOUR | TOPK, {"layout.replicate": 2, "layout.shard": 2, "exchange.topology": "2x2"} | TOPK, ".withheld"),
        (TWO | TOPK, ONE, ""),
        (ONE, TWO | TOPK, ".withheld"),
        (TWO | {"exchange.kind": "powersgd", "exchange.rank": 2}, FOUR | {"exchange.kind": "powersgd", "exchange.rank": 1}, ".factor"),
        (TWO | APART, FOUR | APART, ".local"),
        (FOUR | APART, ONE | {"optim.ema": 0.0}, ""),
        (ONE | {"optim.ema": 0.0}, FOUR | APART, ".local"),
    ],
)  # fmt: skip
def test_rows_of_nodes_become_what_a_snapshot_makes_of_them(tmp_path, before, after, rows):
    for differ, names in run_ranks(carried_and_loaded, 4, tmp_path, before, after):
        assert not differ and (not rows or any(name.endswith(rows) for name in names))


def gone_apart(world, after):
    """Of a state carried from nodes that have trained apart since they met: largest distance of its weights to the nodes' mean, and to their reference."""
    core = core_of(world, {"layout.replicate": 2, "exchange.topology": "2x1"} | APART, precision="float32")
    for step in range(2):
        take_step(core, step)
    mean = {name: (world.sum_(tensor.detach().clone(), "t") / world.size) for name, tensor in core.weights.locals.items()}
    reference = {name: tensor.clone() for name, tensor in references(core.weights, apart_of(core.reducer)).items()}
    carried = core_of(world, after, precision="float32")
    assert not carry_state(carried, StateMap.of(core), {world.rank: core.tensors()}, {rank: (rank,) for rank in range(world.size)})
    return [max(float((tensor - other[name]).abs().max()) for name, tensor in carried.weights.locals.items()) for other in (mean, reference)]


def test_nodes_that_stop_training_apart_keep_what_they_learned_since_they_met():
    to_mean, to_reference = run_ranks(gone_apart, 2, {"layout.replicate": 2, "exchange.topology": "flat", "optim.ema": 0.0})[0]
    assert to_mean < 1e-7 < 1e-4 < to_reference


def lost_and_found(world):
    """What is missing when rank 1 of three shards is lost, without and with its peer's copy; and whether a state carried with that is the old one."""
    core = core_of(world, {"layout.shard": 3})
    where = StateMap.of(core)
    copies = PeerCopies(core.tensors(), where.placements, core.layout, world.axis)
    world.meter.take()
    take_step(core, 0)
    copies.keep(1, core.tensors())
    sent = world.meter.take()["world.peer_copies_bytes"]
    digest = weights_digest(core.laid)
    take_step(core, 1)
    sources = {0: (0,), 2: (2,)}
    held = copies.held(1) if world.rank != 1 else {}
    fresh = core_of(world, {"layout.pipeline": 3})
    untouched = {name: tensor.clone() for name, tensor in fresh.tensors().items()}
    missing = carry_state(fresh, where, held, sources)
    still = not differing(untouched, fresh.tensors())
    cut = frozenset(name for name, placement in where.placements.items() if "shard" in placement.axes)
    rest = carry_state(fresh, where, held, sources, [Copy(1, 2, cut)])
    own = sum(core.tensors()[name].numel() * core.tensors()[name].element_size() for name in cut)
    return {name for name, _ in missing}, still, rest, weights_digest(fresh.laid) == digest, sent / own


@pytest.mark.slow
def test_a_shard_that_no_source_has_is_refused_and_found_with_its_peer():
    for missing, still, rest, same, sent in run_ranks(lost_and_found, 3):
        assert "model.embedding.weight" in missing and still, "what is missing is said, and nothing is moved"
        assert not rest and same
        assert sent == 1.0, "each rank sends its own shards once, and what has replicas not at all"


def test_where_a_state_lies_is_told_to_newcomers_as_json():
    where = StateMap.of(core_of(World(), {}, experts=True))
    cut = Placement((6, 4), (Split(1, ("row", "column"), 2),), ((0, 1), (2, 0)), (0, 2))
    where = StateMap(Layout(pipeline=3, shard=2, zero=1), where.placements | {"cut": cut})
    assert StateMap.from_dict(json.loads(json.dumps(where.as_dict()))) == where
