"""What the estimate says of a pipeline's ranks, held against what they send and keep."""

from dataclasses import replace

import pytest
import torch
from ranks import run_ranks

from penstock.config import ConfigError, load_config
from penstock.engine.build import build_core
from penstock.engine.control import StopRequest
from penstock.engine.step import accumulate
from penstock.lab.equivalence import RandomPlan
from penstock.models import resolve_model
from penstock.parallel import Layout, build_layout, check_layout
from penstock.parallel.cost.activations import kept_activations, kept_casts, layer_activations
from penstock.parallel.cost.estimate import placements, step_traffic
from penstock.parallel.cost.traffic import bytes_sent
from penstock.plan.footprint import footprint
from penstock.plan.layout import describe_layout, layout_text, workloads

BASE = [
    "model.layers=5", "model.dim=24", "model.heads=4", "model.head_dim=6", "model.context=16", "model.ffn_dim=20", "compile.enabled=off",
    "precision.compute=float32", "train.loss_chunk=7", "batch.global=12", "batch.micro=2", "layout.bucket_mb=0.01",
]  # fmt: skip
TIED, DOCUMENTS = "model.tie_embeddings=true", "data.document_mask=true"
MOE = ["model.moe.experts=6", "model.moe.first_dense=1", "model.moe.dim=10", "model.moe.active=2"]


def settled(*sets):
    config = load_config(None, [*BASE, *sets])
    return config.model_copy(update={"model": resolve_model(config.model, 37)})


def cut(text, *sets):
    """`pipeline=2 zb-v tensor=2` as settings."""
    words = text.split()
    return [f"pipeline.schedule={word}" if "=" not in word else f"layout.{word}" for word in words] + list(sets)


def counted(world, cases):
    """For each case: bytes that a step sends by the meter, and by the estimate; bytes of the weights here, by both."""
    found = []
    for sets in cases:
        config = settled(*sets)
        core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
        world.meter.take()
        accumulate(core, 0)
        sent = {name.removesuffix("_bytes"): int(n) for name, n in world.meter.take().items() if name.endswith("_bytes") and n}
        assert core.pipeline is not None
        work = replace(workloads(config, core.layout, core.pipeline.plan)[0], rank=world.rank)
        weights = sum(tensor.numel() for name, tensor in core.weights.locals.items() if name in core.weights.parameters) * 4
        own = {name: n for name, n in sent.items() if not name.startswith("world.")}
        found.append((own, bytes_sent(step_traffic(work), core.layout), weights, footprint(work, config.optim).weights))
    return found


CASES = {
    2: [cut("pipeline=2 1f1b", TIED), cut("pipeline=2 zb-v", TIED, DOCUMENTS), cut("pipeline=2 interleaved", *MOE)],
    4: [
        cut("pipeline=4 1f1b"), cut("pipeline=2 zb-v tensor=4 tensor_topology=2d"), cut("pipeline=2 1f1b tensor=2 tensor_topology=1d", DOCUMENTS),
        cut("pipeline=2 zb-h1 replicate=2", TIED), cut("pipeline=2 zb-v context=2", DOCUMENTS), cut("pipeline=2 1f1b shard=2", TIED),
        cut("pipeline=2 zb-h1 shard=2 zero=1"), cut("pipeline=2 zb-v shard=2 zero=2", *MOE),
    ],
}  # fmt: skip


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_estimate_is_what_a_pipeline_s_ranks_send_and_hold(ranks):
    cases = [case for case in CASES[ranks] if build_size(case) == ranks]
    assert len(cases) >= 3
    for rank, of_rank in enumerate(run_ranks(counted, ranks, cases, timeout_s=300)):
        for case, (sent, estimated, weights, held) in zip(cases, of_rank):
            assert sent == estimated and sent["pipeline.activations"] > 0 and weights == held, (rank, case)


def build_size(case):
    section = settled(*case).layout
    return section.pipeline * section.tensor * section.context * section.shard * max(1, section.replicate)


def test_every_layer_is_held_once_and_activations_follow_the_schedule():
    config, layout = settled("model.layers=8", "layout.pipeline=4", "pipeline.schedule=1f1b", "batch.global=32"), Layout(pipeline=4)
    works = workloads(config, layout)
    assert sorted(layer for work in works for layer in work.layers) == list(range(8))
    assert [work.embeds for work in works] == [True, False, False, False] and [work.ends for work in works] == [False, False, False, True]
    for place, work in enumerate(works[:-1]):  # 1F1B's rank r has so many micro-batches under way as ranks from it on
        layers = sum(layer_activations(work, layer) for layer in work.layers)
        assert kept_activations(work) == (4 - place) * (layers + work.stream_bytes)
    gpipe = workloads(settled("model.layers=8", "layout.pipeline=4", "pipeline.schedule=gpipe", "batch.global=32"), layout)
    assert kept_activations(gpipe[0]) == 4 * kept_activations(works[0])  # all sixteen
    names = [name for name in placements(works[0]) for work in works if placements(work)[name].held_by(layout, work.rank)]
    assert len(names) == len(set(names)) == len(placements(works[0]))


class Kept:
    """Bytes of the storages that autograd keeps, parameters left out: now, and at most."""

    def __init__(self, decoder):
        self._users, self._whose = {}, {p.untyped_storage().data_ptr() for p in decoder.parameters()}
        self.now = self.most = 0

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        return _Holder(self, tensor, None if storage.data_ptr() in self._whose else (storage.data_ptr(), storage.nbytes()))

    def change(self, key, by):
        before = self._users.get(key, 0)
        self._users[key] = before + by
        self.now += key[1] * ((before + by > 0) - (before > 0))
        self.most = max(self.most, self.now)


class _Holder:
    def __init__(self, kept, tensor, key):
        self.kept, self.tensor, self.key = kept, tensor, key
        if key is not None:
            kept.change(key, 1)

    def __del__(self):
        if self.key is not None:
            self.kept.change(self.key, -1)


def kept_by_autograd(world, cases):
    """For each case the most bytes that autograd keeps on this rank in a step, and the estimate of it."""
    found = []
    for sets in cases:
        config = settled(*sets)
        core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
        assert core.pipeline is not None
        work = replace(workloads(config, core.layout, core.pipeline.plan)[0], rank=world.rank)
        kept = Kept(core.decoder)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda holder: holder.tensor):
            accumulate(core, 0)
        found.append((kept.most, kept_activations(work) + kept_casts(work)))
    return found


@pytest.mark.slow
def test_activations_are_what_autograd_keeps_of_the_micro_batches_under_way():
    wide = ["model.layers=6", "model.dim=64", "model.head_dim=16", "model.ffn_dim=160", "model.context=64", "batch.global=16"]
    cases = [[*cut(f"pipeline=2 {kind}"), *wide, f"precision.compute={form}"] for kind in ("1f1b", "gpipe", "interleaved") for form in ("float32", "bfloat16")]
    for rank, of_rank in enumerate(run_ranks(kept_by_autograd, 2, cases, timeout_s=300)):
        for case, (kept, estimated) in zip(cases, of_rank):
            assert kept == pytest.approx(estimated, rel=0.05), (rank, case)


def test_activations_are_sent_once_a_border_and_micro_batch():
    config = settled("model.layers=8", "layout.pipeline=2", "pipeline.schedule=zb-v", "layout.tensor=2", "precision.compute=bfloat16")
    works = workloads(config, build_layout(config, 4))
    assert [work.hops for work in works] == [2, 2] and works[0].stream_bytes == 2 * (16 // 2) * 24 * 2
    assert bytes_sent(step_traffic(works[1]), works[1].layout)["pipeline.activations"] == 2 * 6 * works[0].stream_bytes


def test_the_report_tells_the_stages_the_bubble_and_the_heaviest_rank():
    config = settled("model.layers=8", "layout.pipeline=4", "pipeline.schedule=1f1b", "batch.global=32", "model.vocab=37")
    report = describe_layout(config, 8, 4)
    pipeline, works = report.pipeline, workloads(config, report.layout)
    assert pipeline is not None and sum(pipeline.layers) == 8 and pipeline.rank_of == (0, 1, 2, 3)
    assert 0.2 < pipeline.bubble < 0.4  # 3 / (8 + 3) for equal stages
    assert report.memory.total == max(footprint(work, config.optim).total for work in works) == footprint(works[pipeline.holds_most], config.optim).total
    assert {axis.name: axis.nodes for axis in report.axes} == {"pipeline": 2, "replicate": 1}
    sent = {line.name: line for line in report.traffic}["pipeline.activations"]
    assert 0 < sent.between < sent.inside + sent.between
    assert report.as_dict()["pipeline"]["schedule"] == "1f1b" and describe_layout(settled(), 1, 1).as_dict()["pipeline"] is None
    text = layout_text(report)
    assert "pipeline 1f1b: " in text and "% idle by estimate" in text and f"place {pipeline.holds_most}, which holds most" in text


def test_any_size_that_the_schedule_takes_makes_auto_possible():
    sets = ["layout.pipeline=2", "pipeline.schedule=dualpipe-v", "model.layers=4", "batch.micro=auto"]
    check_layout(settled(*sets, "batch.global=12"), Layout(pipeline=2))
    with pytest.raises(ConfigError, match="dualpipe-v over 2 ranks takes 4 micro-batches or more"):
        check_layout(settled(*sets, "batch.global=3"), Layout(pipeline=2))
