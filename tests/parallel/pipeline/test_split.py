"""Layers over stages: against every possible cut, under limits and slow ranks, and from measured times back to the pieces."""

import itertools
import time

import numpy as np
import pytest

from penstock.config import ConfigError, ModelSection, load_config
from penstock.models import flops_per_token, resolve_model
from penstock.parallel import Layout
from penstock.parallel.cost.traffic import Workload
from penstock.parallel.pipeline.layer_costs import Cost, LayerCosts, estimated_costs, seen_tokens
from penstock.parallel.pipeline.schedule import Costs, wire
from penstock.parallel.pipeline.split import MemoryLimit, split_layers
from penstock.parallel.pipeline.stage_times import measured_layer_costs, part_cost, stage_costs
from penstock.parallel.pipeline.stages import Part

RNG = np.random.default_rng()


def pieces(layers, embedding, head):
    """Costs with so long forward passes, and a byte of state for each unit of time."""
    return LayerCosts(*(tuple(Cost(x, 0.0, 0.0, x, x) for x in group) if i == 0 else Cost(*group, 0.0, 0.0, *group * 2) for i, group in enumerate((layers, [embedding], [head]))))


def cut(costs, ranks, limit=None, slowness=None):
    return split_layers(ModelSection(layers=len(costs.layers)), len(ranks), costs, ranks, limit, slowness)


def spent(parts, costs, ranks, slowness=None):
    """Time of the busiest rank and of the busiest stage."""
    slow = slowness or [1.0] * (max(ranks) + 1)
    stages = [part_cost(part, costs).time * slow[rank] for part, rank in zip(parts, ranks)]
    return max(sum(t for t, r in zip(stages, ranks) if r == rank) for rank in set(ranks)), max(stages)


def every_split(layers, stages):
    for middle in itertools.combinations_with_replacement(range(layers + 1), stages - 1):
        bounds = (0, *middle, layers)
        if all(bounds[s + 1] > bounds[s] for s in range(1, stages - 1)):
            yield [Part(range(a, b), s == 0, s == stages - 1) for s, (a, b) in enumerate(itertools.pairwise(bounds))]


def random_costs(layers, alike):
    times = [1.0] * layers if alike else list(RNG.uniform(0.6, 1.5, layers))
    return pieces(times, RNG.uniform(0, 1), RNG.uniform(0, 4))


def whole(parts, layers):
    return [layer for part in parts for layer in part.layers] == list(range(layers)) and parts[0].embedding and parts[-1].head


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("slow", [False, True])
def test_one_stage_a_rank_is_split_exactly(alike, slow):
    for _ in range(10):
        stages = int(RNG.integers(1, 6))
        layers = int(RNG.integers(stages, 11))
        costs, ranks = random_costs(layers, alike), tuple(range(stages))
        slowness = list(RNG.uniform(1, 2, stages)) if slow else None
        parts = cut(costs, ranks, slowness=slowness)
        assert whole(parts, layers) and parts == cut(costs, ranks, slowness=slowness)
        best = min(spent(split, costs, ranks, slowness) for split in every_split(layers, stages))
        assert spent(parts, costs, ranks, slowness) == pytest.approx(best)


@pytest.mark.parametrize("wiring", ["loop", "wave"])
@pytest.mark.parametrize("ranks, chunks", [(2, 2), (3, 2), (2, 3)])
def test_stages_that_share_a_rank_are_levelled_together(wiring, ranks, chunks):
    rank_of = wire(ranks, chunks, wiring)
    for alike in (True, False):
        layers = int(RNG.integers(len(rank_of), 11))
        costs = random_costs(layers, alike)
        parts = cut(costs, rank_of)
        assert whole(parts, layers)
        best = min(spent(split, costs, rank_of) for split in every_split(layers, len(rank_of)))
        assert spent(parts, costs, rank_of)[0] <= best[0] * (1 + (1e-9 if alike else 0.1))


def test_a_wave_puts_fewer_layers_where_embedding_and_head_meet():
    parts = cut(pieces([1.0] * 16, 0.2, 2.0), wire(4, 2, "wave"))
    at_rank_0, at_rank_1 = (len(parts[r].layers) + len(parts[7 - r].layers) for r in (0, 1))
    assert at_rank_0 < at_rank_1


def test_a_head_worth_several_layers_may_have_a_stage_alone():
    parts = cut(pieces([1.0] * 6, 0.0, 5.0), (0, 1, 2, 3))
    assert [len(part.layers) for part in parts] == [2, 2, 2, 0] and parts[3] == Part(range(6, 6), head=True)


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_slow_rank_gets_less(chunks):
    costs, ranks = pieces([1.0] * 24, 0.0, 0.0), wire(4, chunks, "wave" if chunks > 1 else "loop")
    held = [sum(len(part.layers) for part, r in zip(cut(costs, ranks, slowness=[1, 1, 2, 1]), ranks) if r == rank) for rank in range(4)]
    assert held == [7, 7, 3, 7] or (max(held) == 7 and held[2] == 3)


@pytest.mark.parametrize("ranks", [(0, 1, 2), (0, 1, 1, 0)])
def test_the_limit_is_kept_before_time(ranks):
    # The head takes no time but fills half a rank, so the fastest split is over the limit.
    layers = tuple(Cost(1.0, 0.0, 0.0, 1.0, 1.0) for _ in range(12))
    costs, held = LayerCosts(layers, Cost(0.0, 0.0, 0.0), Cost(0.0, 0.0, 0.0, 6.0)), tuple([2.0] * len(ranks))
    need = [sum(part_cost(part, costs).state + 2 * part_cost(part, costs).kept for part, r in zip(cut(costs, ranks), ranks) if r == rank) for rank in set(ranks)]
    bound = max(need) - 1.0
    parts = cut(costs, ranks, MemoryLimit(bound, held))
    for rank in set(ranks):
        pieces_here = [part_cost(part, costs) for part, r in zip(parts, ranks) if r == rank]
        assert sum(piece.state + 2 * piece.kept for piece in pieces_here) <= bound
    with pytest.raises(ConfigError, match=r"model\.layers = 12 .*GiB.*the best found needs.*layout\.pipeline"):
        cut(costs, ranks, MemoryLimit(10.0, held))


def test_more_stages_than_layers_are_refused_with_what_fits():
    with pytest.raises(ConfigError, match=r"layout\.pipeline = 4 with pipeline\.chunks = 2 makes 8 stages.*model\.layers = 6.*at most 1"):
        cut(pieces([1.0] * 6, 0.0, 0.0), wire(4, 2, "wave"))
    with pytest.raises(ConfigError, match=r"at most 3 ranks"):
        cut(pieces([1.0] * 3, 0.0, 0.0), (0, 1, 2, 3))


def test_a_deep_model_is_split_at_once():
    costs, ranks = pieces([1.0] * 128, 0.1, 3.0), wire(32, 2, "wave")
    began = time.process_time()
    parts = cut(costs, ranks)
    assert time.process_time() - began < 2.0 and whole(parts, 128)  # benchmarks hold it to tenths of a second


def settled(*sets):
    return resolve_model(load_config(None, ["model.layers=5", "model.dim=32", "model.context=64", *sets]).model, 300)


def test_estimates_add_up_to_the_model_s_operations():
    model = settled("model.moe.experts=4", "model.moe.first_dense=2", "model.kv_heads=2")
    costs = estimated_costs(Workload(model, Layout(), micro=3))
    tokens = 3 * model.context
    masked = 12 * model.layers * model.heads * model.head_dim * (model.context - seen_tokens(model))
    assert sum(cost.time for cost in (*costs.layers, costs.head)) == pytest.approx(tokens * (flops_per_token(model) - masked))
    assert costs.layers[0] == costs.layers[1] != costs.layers[2] == costs.layers[4]
    assert costs.head.input_grad == costs.head.weight_grad == 0 and costs.embedding.time < 0.01 * costs.layers[0].time


def test_a_window_shortens_attention():
    assert seen_tokens(settled("model.sliding_window=1")) == 1 and seen_tokens(settled()) == 32.5
    seen = np.tril(np.ones((64, 64))) - np.tril(np.ones((64, 64)), -10)
    assert seen_tokens(settled("model.sliding_window=10")) == pytest.approx(seen.sum(1).mean())


def test_tensor_ranks_divide_the_work_and_the_bytes():
    alone, halved = (estimated_costs(Workload(settled(), Layout(row=rows), micro=2)) for rows in (1, 2))
    assert halved.layers[0].time == alone.layers[0].time / 2 and halved.head.forward == alone.head.forward / 2
    assert halved.layers[0].state < 0.6 * alone.layers[0].state and halved.layers[0].kept < alone.layers[0].kept


def test_stages_are_sums_of_their_pieces():
    costs = LayerCosts(tuple(Cost(i + 1.0, 2.0, 3.0, 0.0, 4.0) for i in range(4)), Cost(0.5, 0.0, 0.5), Cost(6.0, 0.0, 0.0, 0.0, 4.0))
    parts = (Part(range(1), embedding=True), Part(range(1, 3)), Part(range(3, 4)), Part(range(4, 4), head=True))
    stages = stage_costs(parts, costs, 0.25, rank_of=(0, 1, 1, 0), slowness=(1.0, 2.0))
    assert stages.forward == (1.5, 10.0, 8.0, 6.0) and stages.input_grad == (2.0, 8.0, 4.0, 0.0) and stages.weight_grad == (3.5, 12.0, 6.0, 0.0)
    assert stages.transfer == (0.25,) * 3 and stages.memory == (0.4, 0.8, 0.4, 0.4)


@pytest.mark.parametrize("rank_of", [(0, 1, 2, 3), (0, 1, 2, 3, 3, 2, 1, 0)])
def test_measured_stages_give_back_the_pieces_and_the_slow_rank(rank_of):
    estimate = LayerCosts((*[Cost(1.0, 1.1, 0.9)] * 4, *[Cost(2.0, 2.2, 1.8)] * 12), Cost(0.1, 0.0, 0.1), Cost(2.0, 0.0, 0.0))
    truth = LayerCosts(tuple(Cost(0.03 * f, 0.04 * i, 0.05 * w) for f, i, w, *_ in estimate.layers), Cost(0.02, 0.0, 0.01), Cost(0.3, 0.0, 0.0))
    parts = cut(estimate, rank_of)
    slowness = (1.0, 1.0, 1.3, 1.0)
    noise = 1e-3
    told = stage_costs(parts, truth, 0.0, rank_of, slowness)
    told = Costs(*(tuple(RNG.uniform(1 - noise, 1 + noise) * x for x in times) for times in (told.forward, told.input_grad, told.weight_grad)), told.transfer, told.memory)
    found = measured_layer_costs(parts, told, estimate, rank_of)
    if len(rank_of) == 4:  # of two ranks between the ends the median is their mean
        assert found.slowness[2] / found.slowness[1] == pytest.approx(1.3, rel=0.01)
    else:
        assert found.slowness == pytest.approx(slowness, rel=0.01)
        for layer, true in zip(found.costs.layers, truth.layers):
            assert layer[:3] == pytest.approx(true[:3], rel=0.01)
        assert found.costs.head.forward == pytest.approx(0.3, rel=0.05)
    predicted = stage_costs(parts, found.costs, 0.0, rank_of, found.slowness)
    for stage in range(len(parts)):
        total = sum(works[stage] for works in (predicted.forward, predicted.input_grad, predicted.weight_grad))
        assert total == pytest.approx(sum(works[stage] for works in (told.forward, told.input_grad, told.weight_grad)), rel=0.05)
    again = cut(found.costs, rank_of, slowness=found.slowness)
    before, after = (spent(split, truth, rank_of, list(slowness))[0] for split in (parts, again))
    assert after < before


def test_one_stage_tells_all_pieces_apart_by_their_estimates():
    estimate = LayerCosts((Cost(1.0, 1.0, 1.0),) * 3, Cost(1.0, 0.0, 1.0), Cost(4.0, 0.0, 0.0))
    found = measured_layer_costs(cut(estimate, (0,)), Costs((0.8,), (0.3,), (0.4,), (), (1.0,)), estimate)
    assert found.slowness == (1.0,) and found.costs.head.forward == pytest.approx(0.4) and found.costs.embedding.weight_grad == pytest.approx(0.1)
    assert found.costs.layers[0][:3] == pytest.approx((0.1, 0.1, 0.1))
