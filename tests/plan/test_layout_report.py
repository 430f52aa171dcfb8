"""What `penstock layout` says of a layout on a machine of nodes."""

import pytest
import torch
from ranks import run_ranks

from benchmarks.rehearse import FORMATS, counted_bytes, run_step
from penstock.config import ConfigError, load_config, with_values
from penstock.models import resolve_model
from penstock.optim import build_optimizer
from penstock.parallel import Formats, Mesh, build_layout, lay_out, shared_matrices
from penstock.plan.layout import describe_layout, layout_text, workload

BASE = ["model.layers=2", "model.dim=64", "model.heads=4", "model.context=64", "model.vocab=100", "batch.global=64", "batch.micro=2"]


def settled(*sets):
    """A config as `outline` settles it."""
    config = load_config(None, [*BASE, "precision.compute=float32", "train.loss_chunk=64", *sets])
    return with_values(config, {"model": resolve_model(config.model, 100).model_dump(by_alias=True)})


def test_axes_lie_inside_a_node_or_cross():
    report = describe_layout(settled("layout.tensor=4", "layout.shard=4"), 32, 8)
    assert {axis.name: (axis.size, axis.stride, axis.nodes) for axis in report.axes} == {"node": (2, 16, 2), "shard": (4, 4, 2), "row": (4, 1, 1)}
    lines = {line.name: line for line in report.traffic}
    assert lines["row.ffn"].between == 0 and lines["row.ffn"].inside > 0
    # A ring of four with two on each node has two of its four hops between nodes; a ring of two on two nodes has both.
    assert lines["shard.weights"].between == pytest.approx(lines["shard.weights"].inside, abs=1)
    assert lines["node.gradients"].inside == 0
    assert report.inside + report.between == sum(line.inside + line.between for line in report.traffic)


def test_nodes_given_by_hand_count_and_gradients_cross_between_them_once_from_each():
    flat, nodes = (describe_layout(settled(f"exchange.topology={way}"), 4, 8) for way in ("flat", "2x2"))
    assert flat.between == 0 and "2 a node" in layout_text(nodes)
    assert {axis.name: (axis.stride, axis.nodes) for axis in nodes.axes} == {"node": (2, 2), "replicate": (1, 1)}
    lines = {line.name: line for line in nodes.traffic}
    assert lines["node.gradients"].between == pytest.approx(4 * nodes.parameters / 2, rel=0.02)  # half of it from each rank, there and back
    assert nodes.between == lines["node.gradients"].between


def test_one_node_sends_nothing_between_nodes():
    report = describe_layout(settled("layout.context=2", "layout.tensor=2"), 4, 8)
    assert report.between == 0 and report.inside > 0 and all(axis.nodes == 1 for axis in report.axes)
    assert "inside a node" in layout_text(report)


def test_one_rank_sends_nothing():
    report = describe_layout(settled(), 1, 8)
    assert report.traffic == () and report.better is None and report.memory.gathered == report.memory.exchange == 0
    assert report.memory.weights == 4 * report.parameters and report.memory.moments == 8 * report.parameters
    assert "one rank" in layout_text(report)


def test_sharding_divides_what_the_optimizer_holds():
    whole, zero1, zero3 = (describe_layout(settled("layout.shard=8", f"layout.zero={z}") if z else settled(), 8, 8).memory for z in (0, 1, 3))
    assert zero3.weights <= whole.weights / 7 and zero3.moments <= whole.moments / 7 and zero3.gradients <= whole.gradients / 7
    assert zero1.gradients == whole.gradients and zero1.gathered > zero3.gathered - 4 * 2 * 100 * 64


def test_muon_and_averages_count_as_moments():
    adamw, muon, average = (describe_layout(settled(*s), 1, 8).memory.moments for s in ([], ["optim.kind=muon"], ["optim.ema=0.9"]))
    assert muon < adamw < average == adamw * 3 // 2


def test_a_better_grid_is_named_with_its_settings():
    report = describe_layout(settled("layout.tensor=8", "model.heads=8"), 8, 8)
    settings = report.as_dict()["better"]["settings"]
    better = describe_layout(settled("layout.tensor=8", "model.heads=8", *(f"{k}={v}" for k, v in settings.items())), 8, 8)
    assert better.better is None and 1 - (better.inside + better.between) / (report.inside + report.between) == pytest.approx(report.saved)
    assert f"{report.saved:.0%} less: --set layout.tensor_topology=" in layout_text(report)


def test_what_cannot_be_laid_out_is_refused():
    with pytest.raises(ConfigError, match=r"layout\.tensor = 3"):
        describe_layout(settled("layout.tensor=3"), 6, 8)
    with pytest.raises(ConfigError, match="ranks-per-node"):
        describe_layout(settled(), 2, 0)


def muon_bytes(world, sets):
    """What a step with Muon sends under its name, by the meter."""
    config = settled("optim.kind=muon", *sets)
    work = workload(config, build_layout(config, world.size))
    laid = lay_out(work.model, 1, Mesh(work.layout, world), Formats(FORMATS[work.master], FORMATS[work.compute]))
    optimizer = build_optimizer(laid.weights.locals, config.optim, shared_matrices(laid.weights))
    run_step(laid, work, torch.zeros((work.micro, 64), dtype=torch.int64))
    laid.weights.collect()
    counted_bytes(world)
    optimizer.step()
    return counted_bytes(world)


@pytest.mark.slow
def test_muons_exchange_is_estimated():
    sent = run_ranks(muon_bytes, 2, ["layout.tensor=2"])
    report = describe_layout(settled("optim.kind=muon", "layout.tensor=2"), 2, 8)
    estimated = next(line.inside for line in report.traffic if line.name == "row.muon")
    assert sum(s["row.muon"] for s in sent) / 2 == pytest.approx(estimated, rel=0.1)
