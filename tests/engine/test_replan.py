"""An elastic pipeline: a rank that slows down in the middle of a run is scheduled around, and the run learns what one process does."""

from dataclasses import replace

import pytest
import torch
from ranks import run_ranks
from small_runs import small_config

from lab.models_to_verify import small_question
from penstock.config import with_values
from penstock.engine import StopRequest, build_core
from penstock.engine.pipeline import Pipeline
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.state import weights_digest
from penstock.engine.step import take_step
from penstock.engine.tune import replan
from penstock.engine.tune.replan import Watch, move_layers
from penstock.lab.equivalence import RandomPlan
from penstock.monitor import MetricStore
from penstock.plan.pipeline import make_plan
from penstock.store import Run


def train_on_a_clock_of_its_own(world, folder, slow_from):
    """Train with a clock by which every layer takes 3 ms in each work, rank 2's 1.3 times as long from a step on; 0: by the real clock."""
    if slow_from:
        real = Watch.after_step

        def slow(parts, rank):
            return 1.3 if rank == 2 and parts.progress.step >= slow_from else 1.0

        def times(parts, plan):
            each = [0.003 * slow(parts, rank) * (len(part.layers) + part.head) for part, rank in zip(plan.stages.parts, plan.stages.rank_of)]
            return torch.tensor([each] * 3, dtype=torch.float64)

        def own_times(parts, pipeline):
            here = torch.tensor([rank == pipeline.rank for rank in pipeline.plan.stages.rank_of])
            return times(parts, pipeline.plan) * here

        def after_step(self, parts, seconds):
            plan, each = parts.pipeline.plan, times(parts, parts.pipeline.plan).tolist()
            costs = replace(plan.costs, forward=each[0], input_grad=each[1], weight_grad=each[2], transfer=(1e-4,) * (len(each[0]) - 1))
            real(self, parts, plan.timed(costs).step)

        replan._own_times, Pipeline.hop_seconds, Watch.after_step = own_times, lambda self: 1e-4, after_step
    return run_rank(Run(folder), world)["val_loss"]


def moved_and_not(world, config):
    """Losses of steps with and without a move of layers in between, and whether the move left every weight as it was."""
    found = []
    for moves in (False, True):
        core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
        losses = [take_step(core, step).loss for step in range(2)]
        before = weights_digest(core.laid)
        if moves:
            other = {"1f1b": "zb-v", "zb-v": "1f1b"}[config.pipeline.schedule]  # one stage a rank, or two in a wave
            plan = make_plan(with_values(config, {"pipeline.schedule": other}), core.layout, core.micro)
            held = set(core.decoder.blocks)
            move_layers(core, plan)
            assert core.pipeline.plan == plan and core.world.any(set(core.decoder.blocks) != held, "test")
        assert weights_digest(core.laid) == before
        found.append(losses + [take_step(core, step).loss for step in range(2, 4)])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "experts", "changes"),
    [
        (2, False, {"model.tie_embeddings": True, "optim.ema": 0.9}),
        (2, False, {"model.tie_embeddings": True, "pipeline.schedule": "zb-v"}),
        (4, True, {"layout.shard": 2, "layout.expert": 2, "optim.kind": "muon"}),
        (4, True, {"layout.expert": 2, "layout.expert_spare": 1, "layout.expert_every": 1, "optim.kind": "adamw"}),
    ],
)  # fmt: skip
def test_layers_move_between_ranks_with_all_their_state(ranks, experts, changes):
    settings = {"layout.pipeline": 2, "pipeline.schedule": "1f1b", "model.layers": 4, "batch.micro": 6, "optim.warmup": 0}
    for stayed, moved in run_ranks(moved_and_not, ranks, with_values(small_question(experts), settings | changes)):
        assert moved == pytest.approx(stayed, rel=1e-12)


@pytest.mark.slow
def test_a_rank_that_becomes_slower_is_scheduled_around_within_twenty_steps(tmp_path):
    changes = {"model__layers": 24, "model__dim": 16, "model__context": 16, "batch__global": 8, "batch__micro": 1, "train__steps": 42,
               "snapshot__every": 0, "eval__every": 0, "precision__compute": "float64"}
    plain = make_run(small_config(tmp_path, **changes | {"batch__micro": 8}), "test", "test", tmp_path / "plain", None).path
    piped = make_run(small_config(tmp_path, layout__pipeline=4, pipeline__check="after", **changes), "test", "test", tmp_path / "piped", None).path
    alone = run_ranks(train_on_a_clock_of_its_own, 1, plain, 0)[0]
    together = run_ranks(train_on_a_clock_of_its_own, 4, piped, 18, timeout_s=600)
    assert together == pytest.approx([alone] * 4, rel=1e-8)
    events = [row for row in MetricStore(piped / "metrics").read("event") if row["what"] == "pipeline"]
    changed = next(row for row in events if "rank 2" in row["text"] and "made again" in row["text"])
    assert 18 < changed["step"] <= 38 and "layers" in changed["text"] and "tokens/s before" in changed["text"], events
    assert any("since the change" in row["text"] and "slower" not in row["text"] for row in events if row["step"] > changed["step"]), events
