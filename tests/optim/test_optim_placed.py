"""Optimizers, clipping and averaging where each rank holds parts of the tensors, against one plain process in float64."""

import functools

import pytest
import torch
from ranks import run_ranks

from penstock.comm import World
from penstock.config import load_config
from penstock.optim import WeightAverage, build_optimizer, clip_grad_norm
from penstock.optim import muon as muon_module
from penstock.parallel import Layout, Matrices, Mesh, Placement, Split, assemble, own_part
from penstock.parallel.weights import box_views

GRID = (Split(0, ("row",)), Split(1, ("column",)))
FSDP = Split(0, ("shard", "context"))

#: Ranks form a layout, and the tensors are cut so; shapes are odd, so parts are uneven and some are empty.
CASES = {
    "rows over two, uneven": (
        Layout(shard=2),
        {
            "embedding.weight": Placement((9, 6), (FSDP,)),
            "norm.weight": Placement((1,), (FSDP,)),
            "blocks.0.attention.wq.weight": Placement((7, 6), (FSDP,)),
            "blocks.0.ffn.up.weight": Placement((7, 6), (FSDP,)),
            "blocks.1.ffn.up.weight": Placement((7, 6), (FSDP,)),
            "blocks.0.ffn.down.weight": Placement((4, 12), (FSDP,)),
        },
    ),
    "rows over three, one part empty": (
        Layout(shard=3),
        {
            "embedding.weight": Placement((2, 6), (FSDP,)),
            "blocks.0.attention.wq.weight": Placement((4, 6), (FSDP,)),
            "blocks.0.ffn.down.weight": Placement((1, 5), (FSDP,)),
        },
    ),
    "a grid of two by two": (
        Layout(row=2, column=2, topology="2d"),
        {
            "embedding.weight": Placement((9, 5), GRID),
            "blocks.0.attention_norm.weight": Placement((5,), (Split(0, ("column",)),)),
            "blocks.0.attention.wq.weight": Placement((9, 5), GRID),
            "blocks.0.attention.wk.weight": Placement((9, 5), (Split(1, ("column",)),)),
            "blocks.0.attention.wo.weight": Placement((5, 9), (Split(0, ("column",)), Split(1, ("row",), 3))),
            "blocks.0.ffn.router.weight": Placement((3, 5), (Split(1, ("column",)),)),
        },
    ),
    "rows of a cut matrix sharded again": (
        Layout(shard=2, row=2),
        {
            "blocks.0.attention.wq.weight": Placement((7, 5), (Split(0, ("row",), 3), FSDP)),
            "blocks.0.attention.wo.weight": Placement((5, 7), (Split(1, ("row",), 3), FSDP)),
            "blocks.1.attention.wq.weight": Placement((7, 5), (Split(0, ("row",), 3), FSDP)),
        },
    ),
    "replicas of shards": (
        Layout(replicate=2, shard=2),
        {
            "embedding.weight": Placement((5, 4), (FSDP,)),
            "blocks.0.attention.wq.weight": Placement((5, 4), (FSDP,)),
            "blocks.1.attention.wq.weight": Placement((5, 4), (FSDP,)),
            "blocks.2.attention.wq.weight": Placement((5, 4)),
        },
    ),
    "stacks of experts": (
        Layout(shard=4, expert=2),
        {
            "blocks.0.ffn.experts.gate_efd": Placement((5, 6, 4), (Split(0, ("expert",)), Split(1, ("expert_shard",)))),
            "blocks.0.ffn.experts.down_edf": Placement((5, 4, 7), (Split(0, ("expert",)), Split(1, ("expert_shard",)))),
            "blocks.1.ffn.experts.down_edf": Placement((5, 4, 7), (Split(0, ("expert",)), Split(0, ("expert_shard",)))),
        },
    ),
    "experts in places on a grid's columns": (
        Layout(shard=2, expert=2, row=2),
        {
            "blocks.0.ffn.experts.gate_efd": Placement((3, 6, 5), (Split(1, ("row",)),), ((2, 0), (1, 2))),
            "blocks.0.ffn.experts.down_edf": Placement((3, 5, 6), (Split(2, ("row",)),), ((2, 0), (1, 2))),
            "blocks.1.ffn.experts.gate_efd": Placement((3, 6, 5), (Split(1, ("row",)),), ((2, 1), (0,))),
        },
    ),
}


def settings(kind):
    return load_config(None, [f"optim.kind={kind}", "optim.weight_decay=0.1", "optim.lr=0.01"]).optim


def values(placements, step):
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in placements.items()}


def take_steps(tensors, optimizer, average, gradients):
    for step_gradients in gradients:
        for name, tensor in tensors.items():
            tensor.grad = step_gradients[name]
        optimizer.step()
        average.update()
    return tensors | optimizer.state_tensors() | average.state_tensors()


def plainly(placements, kind):
    tensors = values(placements, 0)
    gradients = [values(placements, step) for step in (1, 2, 3)]
    return take_steps(tensors, build_optimizer(tensors, settings(kind)), WeightAverage(tensors, 0.9), gradients)


def in_parts(world, case, kind, room):
    layout, placements = CASES[case]
    mesh = Mesh(layout, world)

    def parts(tensors):
        return {name: own_part(tensor, placements[name], mesh) for name, tensor in tensors.items()}

    muon_module.CHUNK_ELEMENTS = room
    tensors = parts(values(placements, 0))
    gradients = [parts(values(placements, step)) for step in (1, 2, 3)]
    shared = Matrices(placements, mesh)
    state = take_steps(tensors, build_optimizer(tensors, settings(kind), shared), WeightAverage(tensors, 0.9), gradients)
    sent = world.meter.take()
    whole = {}
    for name, tensor in state.items():
        parameter = next((p for p in placements if p in name), None)
        if parameter is not None and tensor.dim():
            whole[name] = assemble(tensor, placements[parameter], mesh, "test")
    copies = {(name, box): part for name, p in placements.items() for box, part in views(tensors[name], p, mesh)}
    return whole, copies, sent


def views(tensor, placement, mesh):
    boxes = placement.boxes(mesh.layout, mesh.world.rank)
    return zip(boxes, box_views(tensor, boxes))


def clip_in_parts(world, case, dtype, max_norm):
    layout, placements = CASES[case]
    mesh = Mesh(layout, world)
    gradients = {name: own_part(tensor.to(dtype), placements[name], mesh) for name, tensor in values(placements, 1).items()}
    counted = []
    for name, gradient in gradients.items():
        owned = placements[name].owned(layout, world.rank)
        counted += [view for (_, view), mine in zip(views(gradient, placements[name], mesh), owned) if mine]
    norm = clip_grad_norm(list(gradients.values()), max_norm, counted, lambda square: world.sum_(square, "norm"))
    return norm, {name: assemble(gradient, placements[name], mesh, "test") for name, gradient in gradients.items()}


def update_with_a_gradient_on_one_rank(world):
    placement = Placement((6, 4), (Split(0, ("replicate",)),))
    mesh = Mesh(Layout(replicate=world.size), world)
    whole = values({"w": placement}, 0)["w"]
    weight = own_part(whole, placement, mesh)
    if world.rank == 0:
        weight.grad = own_part(whole, placement, mesh)
    muon_module.Muon([weight], 0.1, 0.9, 0.0, Matrices({"w": placement}, mesh), ["w"]).step()
    return assemble(weight, placement, mesh, "test")


def count_matrices(world, case):
    """How many matrices this rank works on in one step, and bits of the results, which depend on what else is in the batch."""
    layout, placements = CASES[case]
    mesh = Mesh(layout, world)
    placements = {name: p for name, p in placements.items() if name.startswith("blocks.") and len(p.shape) > 1}
    worked = []

    def work(x_bmn):
        worked.append(len(x_bmn))
        return x_bmn + torch.arange(len(x_bmn)).view(-1, 1, 1) + world.rank

    results = Matrices(placements, mesh).map(work, {name: own_part(t, placements[name], mesh) for name, t in values(placements, 0).items()}, 1 << 26)
    copies = {(name, box): part for name, p in placements.items() for box, part in views(results[name], p, mesh)}
    return sum(worked), copies


def everything(world):
    """All that these tests want of so many ranks, because starting ranks takes longer than all of it."""
    found = {}
    for case, (layout, _) in CASES.items():
        if layout.ranks == world.size:
            found |= {(case, kind): in_parts(world, case, kind, 1 << 26) for kind in ("adamw", "muon")}
            found[case, "in turns"] = in_parts(world, case, "muon", 42)
            found[case, "count"] = count_matrices(world, case)
            found |= {(case, *clip): clip_in_parts(world, case, *clip) for clip in CLIPS}
    return found | {"one gradient": update_with_a_gradient_on_one_rank(world)}


CLIPS = [(torch.float64, 0.5), (torch.float64, 0.0), (torch.float32, 0.5)]


@functools.cache
def answers(ranks):
    return run_ranks(everything, ranks)


def answers_of(case, *what):
    return [answer[(case, *what)] for answer in answers(CASES[case][0].ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon", "in turns"])
@pytest.mark.parametrize("case", CASES)
def test_parts_are_updated_as_the_whole_is(case, kind):
    placements = CASES[case][1]
    expected = plainly(placements, kind if kind == "adamw" else "muon")
    seen = {}
    for whole, copies, _ in answers_of(case, kind):
        assert {f"ema.{name}" for name in placements} | placements.keys() <= whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
        for key, part in copies.items():
            assert torch.equal(seen.setdefault(key, part), part), f"replicas of {key} differ"


def test_each_matrix_travels_once_to_its_owner_and_back():
    case = "rows over two, uneven"
    sent = [sent for _, _, sent in answers_of(case, "muon")]
    # Owners alternate: of three matrices of 4 + 3 rows of 6, then of one of 2 + 2 rows of 12, the part of the other rank travels.
    assert sum(row["shard.muon_bytes"] for row in sent) == 3 * 8 * 2 * (18 + 24 + 18 + 24)
    assert {row["shard.muon_calls"] for row in sent} == {3 * 2 * 2}, "three steps, there and back, two shapes"
    in_turns = answers_of(case, "in turns")[0][2]
    assert in_turns["shard.muon_calls"] == 3 * 2 * (2 + 1), "room for one matrix on each rank: three of one shape take two turns"


@pytest.mark.parametrize(
    "case,counts",
    [
        ("rows over two, uneven", [2, 2]),
        ("a grid of two by two", [2, 2, 1, 1]),  # wq and wo are dealt to four ranks, wk and the router to each row's two
        ("replicas of shards", [2, 2, 2, 2]),  # of each shard's pair, one matrix each, and the one that is whole everywhere
        ("stacks of experts", [3 + 2, 2 + 1, 3 + 1, 2 + 1]),  # three experts here and two there; the last stack's are whole on one rank
        ("experts in places on a grid's columns", [3, 3, 2, 1]),  # nine matrices, though one expert has two places
    ],
)
def test_ranks_share_the_matrices_and_work_on_each_once(case, counts):
    found = answers_of(case, "count")
    assert [count for count, _ in found] == counts


def test_an_expert_with_several_places_gets_one_result_in_all():
    seen = {}
    for _, copies in answers_of("experts in places on a grid's columns", "count"):
        assert all(torch.equal(seen.setdefault(key, part), part) for key, part in copies.items())


def test_a_gradient_missing_on_one_rank_counts_as_zero_there():
    weight = values({"w": Placement((6, 4))}, 0)["w"]
    weight.grad = torch.cat([weight[:3], torch.zeros(3, 4)])
    muon_module.Muon([weight], 0.1, 0.9, 0.0).step()
    for answer in answers(2):
        torch.testing.assert_close(answer["one gradient"], weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype,max_norm", CLIPS)
@pytest.mark.parametrize("case", CASES)
def test_every_element_counts_once_in_the_norm_however_often_it_is_held(case, dtype, max_norm):
    expected = {name: tensor.to(dtype) for name, tensor in values(CASES[case][1], 1).items()}
    norm = clip_grad_norm(list(expected.values()), max_norm)
    found = answers_of(case, dtype, max_norm)
    assert len({float(rank_norm) for rank_norm, _ in found}) == 1 and found[0][0].dtype == dtype
    tolerance = {"rtol": 1e-13, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-7}
    for rank_norm, whole in found:
        torch.testing.assert_close(rank_norm, norm, **tolerance)
        for name, tensor in whole.items():
            torch.testing.assert_close(tensor, expected[name], **tolerance)


def test_a_plain_process_shares_nothing_and_updates_the_same_bits():
    placements = {name: Placement(p.shape) for name, p in CASES["rows over two, uneven"][1].items()}
    expected = plainly(placements, "muon")
    tensors = values(placements, 0)
    mesh = Mesh(Layout(), World())
    gradients = [values(placements, step) for step in (1, 2, 3)]
    state = take_steps(tensors, build_optimizer(tensors, settings("muon"), Matrices(placements, mesh)), WeightAverage(tensors, 0.9), gradients)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert not mesh.world.meter.take()
