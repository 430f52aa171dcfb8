"""What the probes measure is the model's, whatever the layout; it costs no collective and changes no bit; and it names where a number goes bad."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from ranks import run_ranks

from lab.models_to_verify import small_question
from penstock.comm import World
from penstock.config import with_values
from penstock.engine import StopRequest, build_core, next_result
from penstock.engine.probes.places import Sums, around, place_of
from penstock.engine.step import NonFinite, take_step
from penstock.lab.equivalence import RandomPlan
from penstock.monitor.series.table import ABSENT_BITS

ROOTS = ("activation_norm/", "grad_norm/", "weight_norm/", "update_norm/", "first_moment/", "second_moment/")
STEPS = 2
PROBED = {"metrics__probe_every": 1, "model__layers": 4}
DENSE = [
    (2, {"layout.shard": 2}),
    (2, {"layout.shard": 2, "layout.zero": 1}),
    (2, {"layout.tensor": 2}),
    (3, {"layout.tensor": 3}),
    (4, {"layout.tensor": 4, "layout.tensor_topology": "2d", "layout.tensor_grid": "2x2"}),
    (4, {"layout.tensor": 4, "layout.tensor_topology": "2.5d", "layout.tensor_grid": "2x2x1"}),
    (2, {"layout.pipeline": 2, "pipeline.schedule": "zb-v", "batch.micro": 3}),
    (2, {"layout.pipeline": 2, "pipeline.schedule": "zb-v", "batch.micro": 3, "pipeline.check": "after"}),
    (2, {"layout.context": 2}),
    (4, {"layout.shard": 2, "layout.context": 2}),
    (2, {"layout.replicate": 2, "exchange.topology": "2x1"}),
]  # fmt: skip
EXPERTS = [
    (2, {"layout.expert": 2}),
    (2, {"layout.expert": 2, "layout.expert_spare": 1, "layout.expert_every": 1}),
    (4, {"layout.shard": 2, "layout.expert": 2, "layout.tensor": 2}),
    (4, {"layout.pipeline": 2, "layout.expert": 2, "batch.micro": 3}),
]  # fmt: skip


def config_of(experts, settings):
    return with_values(small_question(experts, optim__kind="muon" if experts else "adamw", **PROBED), settings)


def read(core, step):
    """A step's metrics on this rank."""
    numbers = core.probes.read(step).fetch()
    found = dict(numbers.known)
    for names, values in numbers.values():
        found |= dict(zip(names, values.tolist()))
    return found


def steps(world, config):
    """The metrics of some steps on one rank, what torch trained, and how often collectives ran."""
    core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
    losses, rows = [], []
    for step in range(STEPS):
        losses.append(next_result(core, step, step == STEPS - 1).loss)
        if config.metrics.probe_every:
            rows.append(read(core, step))
    weights = {name: tensor.detach().clone() for name, tensor in core.weights.locals.items()}
    return rows, losses, weights, dict(world.meter.operations)


def together(rows, name):
    values = [row[name] for row in rows if name in row]
    assert all(np.float64(value).view(np.uint64) != ABSENT_BITS for value in values)
    return math.sqrt(sum(value * value for value in values))


@pytest.mark.slow
@pytest.mark.parametrize(("experts", "ranks", "settings"), [(False, *way) for way in DENSE] + [(True, *way) for way in EXPERTS])
def test_norms_of_all_ranks_together_are_those_of_one_and_nothing_else_changes(experts, ranks, settings):
    config = config_of(experts, settings)
    alone = steps(World(), config_of(experts, {"model.layers": 4}))
    watched = run_ranks(steps, ranks, config)
    plain = run_ranks(steps, ranks, with_values(config, {"metrics.probe_every": 0}))
    for step in range(STEPS):
        one, all_ = alone[0][step], [result[0][step] for result in watched]
        roots = [name for name in one if name.startswith(ROOTS)]
        assert len(roots) > 150
        for name in roots:
            assert together(all_, name) == pytest.approx(one[name], rel=1e-6, abs=1e-14), name
        assert len({name for row in all_ for name in row}) >= 0.9 * len(one)
    for with_, without in zip(watched, plain):
        assert with_[1] == without[1] and with_[3] == without[3]
        assert all(torch.equal(tensor, without[2][name]) for name, tensor in with_[2].items())


def test_places_say_where_a_parameter_is():
    assert place_of("blocks.3.attention.wq.weight") == "layer.03.attention.wq"
    assert place_of("blocks.12.ffn_norm.weight") == "layer.12.ffn.norm"
    assert place_of("blocks.0.ffn.experts.gate_efd") == "layer.00.ffn.experts.gate"
    assert [place_of(f"{name}.weight") for name in ("embedding", "norm", "head")] == ["embedding", "norm", "head"]
    assert around("layer.03.attention.wq") == ["layer.03.attention", "layer.03", "total"] and around("head") == ["total"]


def test_a_part_that_is_not_finite_spoils_the_norms_of_its_own_places_alone():
    sums = Sums(["embedding.weight", "blocks.0.ffn.up.weight", "blocks.1.ffn.up.weight"])
    norms = dict(zip(sums.places, sums.norms(np.array([3.0, math.nan, 4.0]))))
    assert norms["embedding"] == 3.0 and norms["layer.01"] == 4.0
    assert all(math.isnan(norms[place]) for place in ("layer.00.ffn.up", "layer.00.ffn", "layer.00", "total"))
    assert math.isinf(dict(zip(sums.places, sums.norms(np.array([math.inf, 1.0, 1.0]))))["embedding"])


def poisoned(world, config, layer):
    """The metrics of a step that fails since a layer's weight is bad, on one rank."""
    core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
    name = f"blocks.{layer}.ffn.up.weight"
    if name in core.weights.locals and core.weights.locals[name].numel():
        with torch.no_grad():
            core.weights.locals[name].view(-1)[0] = math.inf
    with pytest.raises(NonFinite):
        take_step(core, 1)
    core.probes.failed(1)
    return read(core, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "settings"), [(1, {}), (2, {"layout.shard": 2}), (2, {"layout.pipeline": 2, "batch.micro": 3})])
def test_a_step_that_fails_shows_the_layer_where_it_began(ranks, settings):
    config = with_values(config_of(False, settings), {"metrics.probe_every": 10})
    rows = run_ranks(poisoned, ranks, config, 2) if ranks > 1 else [poisoned(World(), config, 2)]
    finite = {name: all(math.isfinite(row[name]) for row in rows if name in row) for row in rows for name in row if name.startswith("activation_norm/layer")}
    assert finite == {f"activation_norm/layer.{layer:02d}": layer < 2 for layer in range(4)}


@pytest.mark.slow
def test_a_compiled_model_is_looked_into_when_a_step_fails(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # as a graph, without a minute of code generation
    row = poisoned(World(), with_values(config_of(False, {"model.layers": 1, "compile.enabled": "on"}), {"metrics.probe_every": 10}), 0)
    assert math.isfinite(row["activation_norm/layer.00.attention"])
    assert not math.isfinite(row["activation_norm/layer.00.ffn"]) and not math.isfinite(row["activation_norm/layer.00"])
