"""What a run says of its exchange: the nodes at its start, bytes and seconds over all ranks at its end."""

import pytest
from ranks import run_ranks
from small_runs import small_config
from test_exchange import core_of

from penstock.comm import World
from penstock.engine.record.exchange_report import ExchangeTotals, announcement
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.monitor import MetricStore
from penstock.store import Run

STEPS = 6


def train(world: World, folder):
    return run_rank(Run(folder), world)


def results(tmp_path, ranks=2, **changes):
    """Every rank's summary, what is on disk, and the lead rank's rows of a small run."""
    config = small_config(tmp_path, train__steps=STEPS, eval__every=0, metrics__tensorboard=False, layout__replicate=ranks, **changes)
    run = make_run(config, "test", "test", tmp_path / "run", None)
    found = run_ranks(train, ranks, run.path)
    return found, run.read("summary.json"), MetricStore(run.path / "metrics").read("train")


@pytest.mark.slow
def test_a_dense_run_over_two_nodes_sends_its_gradient_from_each_every_step_and_saves_nothing(tmp_path):
    found, written, rows = results(tmp_path, exchange__topology="2x1", snapshot__every=0)  # in which step a snapshot's report travels is the disk's affair
    told, gradient = found[0]["exchange"], 4 * found[0]["parameters"]
    assert told == found[1]["exchange"] == written["exchange"]
    assert (told["kind"], told["nodes"], told["steps"], told["saved"]) == ("dense", 2, STEPS, 0.0)
    assert told["exchange_bytes"] == told["dense_bytes"] == 2 * STEPS * gradient  # an all-reduce over two sends the whole once from each
    assert 0 < told["bytes_between"] - told["exchange_bytes"] < 0.001 * told["exchange_bytes"] and told["bytes_inside"] < 100
    assert told["exposed_s"] > 0 and told["hidden_s"] >= 0 and 0 < told["exposed_share"] < 1
    assert told["exposed_share"] * sum(row["step_s"] for row in rows) == pytest.approx(told["exposed_s"], rel=0.2)  # mean of the ranks, and the lead's


@pytest.mark.slow
def test_a_top_k_run_says_what_share_of_the_dense_bytes_it_saved(tmp_path):
    found, _, rows = results(tmp_path, exchange__topology="2x1", exchange__kind="topk", exchange__density=0.1, exchange__values="bf16")
    told, entries = found[0]["exchange"], found[0]["parameters"]
    assert told["dense_bytes"] == 2 * STEPS * 4 * entries
    assert told["exchange_bytes"] == 2 * sum(row["node.gradients_between_bytes"] for row in rows)  # messages of both nodes travel at the longer's length
    assert told["saved"] == pytest.approx(1 - told["exchange_bytes"] / told["dense_bytes"])
    each = told["exchange_bytes"] / (2 * STEPS * entries)
    assert 0.1 * 2 < each < 0.1 * (2 + 1) * 1.2  # two bytes for a tenth of the entries, less than one for each index, and norms whole


@pytest.mark.slow
def test_inside_one_node_nothing_crosses_and_there_is_no_share_to_save(tmp_path):
    found, _, _ = results(tmp_path)
    told = found[0]["exchange"]
    assert (told["nodes"], told["bytes_between"], told["dense_bytes"], told["saved"]) == (1, 0, 0, None)
    assert told["bytes_inside"] > 2 * STEPS * 4 * found[0]["parameters"]


def test_bytes_between_are_not_counted_inside_too_and_hidden_time_is_never_negative():
    totals = ExchangeTotals()
    totals.add({"node.gradients_bytes": 10, "node.gradients_between_bytes": 10, "row.x_bytes": 7, "exchange.exposed_s": 1.0, "exchange.span_s": 4.0}, 8.0)
    totals.add({"world.totals_bytes": 6, "world.totals_between_bytes": 4, "exchange.exposed_s": 2.0, "exchange.span_s": 0.5}, 8.0)
    assert totals == ExchangeTotals(steps=2, step_s=16.0, between=14, inside=9, exchange=10, exposed_s=3.0, hidden_s=3.0)


def announced(world, settings):
    return [announcement(core_of(world, each)) for each in settings]


@pytest.mark.slow
def test_several_nodes_are_said_with_how_gradients_travel_between_them():
    topk = {"exchange.kind": "topk", "exchange.topology": "2x2", "layout.replicate": 4}
    settings = [
        topk,
        {"exchange.topology": "4x1", "exchange.kind": "periodic", "exchange.every": 5, "layout.replicate": 4},
        {"exchange.topology": "2x2", "layout.shard": 4},
        {"exchange.topology": "flat"},
        topk | {"exchange.kind": "powersgd", "exchange.rank": 2},
    ]
    first, second, third, fourth, fifth = run_ranks(announced, 4, settings)[0]
    assert first == "2 nodes of 2 ranks (0-1, 2-3); gradients between them: the largest 5% in int4"
    assert second.startswith("4 nodes of 1 rank (0, 1, 2, 3); gradients between them: none, but every 5 steps")
    assert third == "2 nodes of 2 ranks (0-1, 2-3); no sum of gradients is made node by node in this layout"
    assert fourth == ""
    assert fifth.endswith("gradients between them: approximations of rank 2")
