"""Experts that live on other ranks compute what they compute at home: outputs, gradients, loads, replicas, moves."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks

from penstock.comm import World
from penstock.config import ConfigError, load_config
from penstock.models import balance_experts, build_decoder, resolve_model
from penstock.models.moe import MixtureOfExperts
from penstock.parallel import Layout, Mesh, plan_weights
from penstock.parallel.experts.balance import even_slots
from penstock.parallel.experts.expert import divide, spread_experts
from penstock.parallel.experts.slots import move_experts, sync_replicas
from penstock.parallel.weights import own_part

HOT = ((0, 3, 0), (1, 2, 4, 3))  # expert 0 twice in one place, 3 in both, places of different size
SPREAD = ((5, 0), (1, 0), (2, 0), (3, 4))


def moe_model(experts, *sets):
    base = ["model.layers=2", "model.dim=12", "model.heads=2", "model.context=16", f"model.moe.experts={experts}", "model.moe.active=2", "model.moe.dim=7"]
    return resolve_model(load_config(None, [*base, *sets]).model, 19)


def decoder_of(model):
    decoder = build_decoder(model, 3, "cpu").double()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1 and "router" not in name:
                parameter.mul_(8)  # experts whose outputs differ visibly
    return decoder


def tokens_of(rank, model):
    generator = torch.Generator().manual_seed(100 + rank)
    count = 3 + 2 * rank  # ranks with different numbers of rows
    return torch.randn(1, count, model.dim, generator=generator, dtype=torch.float64)


def weigh(y):
    """A scalar that every output moves differently."""
    return (y * torch.linspace(0.3, 1.7, y.shape[-1], dtype=y.dtype)).tanh().sum() + y.square().sum()


def favour(decoder, chosen):
    """Make every token choose the two experts `chosen`."""
    for block in decoder.blocks.values():
        block.ffn.router.bias_e[list(chosen)] += 100.0


def spread_rank(world, model, layout, slots, chosen):
    """One rank's mixture of experts under expert parallelism: scalar, gradients, counts."""
    mesh = Mesh(layout, world)
    decoder = decoder_of(model)
    favour(decoder, chosen)
    placed = {"1": slots} if slots else None
    plan = plan_weights(model, layout, {name: tuple(p.shape) for name, p in decoder.named_parameters()}, placed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.data = own_part(parameter.data, plan[name], mesh)
    spread_experts(decoder, mesh, placed)
    moe = decoder.blocks["1"].ffn
    x = tokens_of(world.rank, model).requires_grad_()
    loss = weigh(moe(x))
    loss.backward()
    named = {f"blocks.1.ffn.{name}": p for name, p in moe.named_parameters()}
    locals_ = {name: p.detach() for name, p in named.items()}
    for name, tensor in locals_.items():
        tensor.grad = named[name].grad
    sync_replicas(locals_, {name: plan[name] for name in locals_}, mesh)
    boxes = {name: [box.offsets[0] for box in plan[name].boxes(layout, world.rank)] for name in locals_ if "experts" in name}
    if not slots:
        boxes = {name: list(range(first[0], first[0] + len(locals_[name]))) for name, first in boxes.items()}
    traffic = world.meter.take()
    balance_experts(decoder, 0.01, lambda load: world.sum_(load, "expert_load"))
    bias = [block.ffn.router.bias_e for block in decoder.blocks.values()]
    return loss.item(), x.grad, {name: t.grad for name, t in locals_.items()}, boxes, traffic, bias


def plain(model, ranks, chosen):
    decoder = decoder_of(model)
    favour(decoder, chosen)
    moe = decoder.blocks["1"].ffn
    inputs = [tokens_of(rank, model).requires_grad_() for rank in range(ranks)]
    loss = weigh(moe(torch.cat(inputs, 1)))
    loss.backward()
    gradients = {f"blocks.1.ffn.{name}": p.grad for name, p in moe.named_parameters()}
    balance_experts(decoder, 0.01, None)
    return loss, inputs, gradients, [block.ffn.router.bias_e for block in decoder.blocks.values()]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


CASES = {  # experts, places, slots, the experts that all tokens choose
    2: {
        "even": (6, 2, (), ()),
        "5 over 2": (5, 2, (), ()),
        "replicas": (5, 2, HOT, ()),
        "a place that gets no rows": (6, 2, (), (1, 2)),
    },
    4: {
        "6 over 4, the last place has none": (6, 4, (), ()),
        "an expert in three places": (6, 4, SPREAD, ()),
        "two groups of two": (5, 2, HOT, ()),
        "hot expert and places without rows": (6, 4, SPREAD, (0, 1)),
    },
}


def spread_ranks(world, cases):
    return {
        name: spread_rank(world, moe_model(experts), Layout(replicate=world.size, expert=places), slots, chosen)
        for name, (experts, places, slots, chosen) in cases.items()
    }


@pytest.fixture(scope="module")
def answers_of():
    """What the ranks of a size answer to all its cases, from one start of the ranks."""
    return functools.cache(lambda ranks: run_ranks(spread_ranks, ranks, CASES[ranks]))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "case"), [(ranks, case) for ranks, cases in CASES.items() for case in cases])
def test_spread_experts_compute_what_they_do_at_home(ranks, case, answers_of):
    experts, places, _slots, chosen = CASES[ranks][case]
    layout = Layout(replicate=ranks, expert=places)
    answers = [answer[case] for answer in answers_of(ranks)]
    loss, inputs, gradients, bias = plain(moe_model(experts), ranks, chosen)
    close(torch.tensor(sum(answer[0] for answer in answers), dtype=torch.float64), loss.detach())
    for answer, x in zip(answers, inputs):
        close(answer[1], x.grad)
        assert all(torch.equal(mine, other) for mine, other in zip(answer[5], bias)), "the balancing bias must not depend on the layout"
    for name, whole in gradients.items():
        if "experts" not in name:
            close(sum(answer[2][name] for answer in answers), whole)
            continue
        seen = set()
        for place in range(places):
            group = [answers[rank] for rank in range(ranks) if layout.coordinate(rank, "expert") == place]
            held = group[0][3][name]
            seen |= set(held)
            close(sum(answer[2][name] for answer in group), whole[held])
        assert seen == set(range(experts))


def test_slots_of_one_expert_get_the_same_gradient_bits_by_one_all_reduce(answers_of):
    answers = [answer["an expert in three places"] for answer in answers_of(4)]
    for name in answers[0][3]:
        rows = [answers[0][2][name][1], answers[1][2][name][1], answers[2][2][name][1]]
        assert rows[0].any() and torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
    for answer in answers:
        assert answer[4]["expert.expert_replicas_calls"] == 1
        assert answer[4]["expert.experts_calls"] == 4  # there and back, forward and backward
        assert answer[4]["expert.expert_counts_bytes"] == 8 * 6 * 3


@given(
    counts=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=5),
    replicas=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_replicas_share_rows_evenly_from_each_source_and_altogether(counts, replicas):
    expert_s = torch.tensor([e for e, n in enumerate(replicas) for _ in range(n)])
    replica_s = torch.tensor([r for n in replicas for r in range(n)])
    part_ps = divide(torch.tensor(counts), expert_s, replica_s, torch.tensor(replicas)[expert_s])
    for expert in range(3):
        parts = part_ps[:, expert_s == expert]
        assert parts.sum(1).tolist() == [count[expert] for count in counts]
        assert int((parts.amax(1) - parts.amin(1)).max()) <= 1
        assert int(parts.sum(0).max() - parts.sum(0).min()) <= 1


MOVES = [
    (Layout(replicate=4, expert=4), None, {"1": SPREAD}),
    (Layout(replicate=2, row=2, expert=2), {"1": ((0, 1, 2, 0), (3, 4, 5, 1))}, {"1": ((5, 4, 0, 4), (3, 2, 1, 4))}),
]


def move_rank(world, moves):
    return [moved_on_rank(world, *move) for move in moves]


def moved_on_rank(world, layout, before, after):
    model = moe_model(6)
    mesh = Mesh(layout, world)
    shapes = {name: tuple(p.shape) for name, p in build_decoder(model, 0, "meta").named_parameters()}
    old, new = (plan_weights(model, layout, shapes, slots) for slots in (before, after))
    generator = torch.Generator().manual_seed(5)
    whole = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors = {name: own_part(value, old[name], mesh) for name, value in whole.items()}
    world.meter.take()
    moved = move_experts(tensors, old, new, mesh)
    calls = world.meter.take()["expert.move_experts_calls"]
    right = all(torch.equal(moved[name], own_part(value, new[name], mesh)) for name, value in whole.items())
    back = move_experts(moved, new, old, mesh)
    kept = all(moved[name] is tensors[name] for name in shapes if "blocks.1.ffn.experts" not in name)
    return right, all(torch.equal(back[name], tensors[name]) for name in shapes), calls, kept


def test_moved_experts_keep_their_bits_and_only_moved_layers_travel():
    for answers in run_ranks(move_rank, 4, MOVES):
        for right, back, calls, kept in answers:
            assert right and back and kept
            assert calls == 3


def test_slots_are_given_by_block_and_refused_where_shards_would_cut_between_experts():
    model = moe_model(6)
    shapes = {name: tuple(p.shape) for name, p in build_decoder(model, 0, "meta").named_parameters()}
    plan = plan_weights(model, Layout(replicate=2, expert=2), shapes, {"1": ((0, 1, 2, 0), (3, 4, 5, 1))})
    assert plan["blocks.0.ffn.experts.up_efd"].slots == () and plan["blocks.0.ffn.experts.up_efd"].local_shape(Layout(replicate=2, expert=2), 1) == (3, 7, 12)
    assert plan["blocks.1.ffn.experts.up_efd"].local_shape(Layout(replicate=2, expert=2), 1) == (4, 7, 12)
    assert plan["blocks.1.ffn.router.weight"].slots == ()
    with pytest.raises(ConfigError, match=r"model\.moe\.dim"):
        plan_weights(model, Layout(shard=4, expert=2), shapes, {"1": even_slots(6, 2)})


def test_without_slots_or_ranks_nothing_is_exchanged():
    decoder = decoder_of(moe_model(6))
    assert isinstance(decoder.blocks["0"].ffn, MixtureOfExperts)
    world = World()
    x = tokens_of(0, decoder.model)
    before = decoder.blocks["0"].ffn(x)
    spread_experts(decoder, Mesh(Layout(), world))
    assert torch.equal(decoder.blocks["0"].ffn(x), before)
    assert not world.meter.take()
