"""Which ranks share a node: by name, by hand, and by timing links."""

import time

import pytest
import torch.distributed as dist
from ranks import run_ranks

from penstock.comm import measured_nodes
from penstock.comm.nodes import clustered, numbered
from penstock.config import ConfigError, load_config
from penstock.parallel import build_layout
from penstock.parallel.layout import nodes_of_replicas


def test_ranks_of_one_name_are_a_node():
    assert numbered([7.0, 7.0, 3.0, 7.0, 3.0]) == (0, 0, 1, 0, 1)


def test_ranks_with_fast_links_are_a_node_and_links_that_are_alike_make_one():
    node = [0, 1, 0, 1, 2]
    seconds = [[0.0 if a == b else 0.01 * (1 + a + b) / 5 if node[a] == node[b] else 0.2 + 0.01 * a * b for b in range(5)] for a in range(5)]
    seconds = [[max(seconds[a][b], seconds[b][a]) for b in range(5)] for a in range(5)]
    assert clustered(seconds) == (0, 1, 0, 1, 2)
    assert clustered([[0.01 * (1 + (a + b) % 2) for b in range(4)] for a in range(4)]) == (0, 0, 0, 0)


def measured(world):
    """Nodes by links of which those between the ranks 0 and 2 and the others are slow."""
    for name in ("send", "recv"):
        kept = getattr(dist, name)

        def slow(tensor, peer, kept=kept):
            if (world.rank in (0, 2)) != (peer in (0, 2)):
                time.sleep(0.3)
            return kept(tensor, peer)

        setattr(dist, name, slow)
    return measured_nodes(world)


@pytest.mark.slow
def test_nodes_are_found_by_timing_every_link():
    assert run_ranks(measured, 4) == [(0, 1, 0, 1)] * 4


@pytest.mark.parametrize(
    ("nodes", "pipeline", "replicate", "found"),
    [
        ([0, 0, 1, 1], 1, 4, 2),
        ([0, 0, 1, 1], 1, 2, 2),  # a replica is a node
        ([0, 0, 1, 1], 2, 2, 1),  # a stage is a node
        ([0, 1, 2, 3], 2, 2, 2),
        ([0, 0, 0, 1], 1, 4, 1),  # not evenly
        ([0, 1, 0, 1], 1, 4, 1),  # not one after the other
        ([0, 1, 0, 1], 1, 2, 1),  # each replica on both
    ],
)
def test_replicas_are_summed_by_way_of_nodes_where_those_have_equally_many(nodes, pipeline, replicate, found):
    assert nodes_of_replicas(nodes, pipeline, replicate) == found


def test_a_topology_of_another_number_of_ranks_is_refused():
    with pytest.raises(ConfigError, match=r"exchange\.topology = '2x2' has 4 ranks, and 6 are started"):
        build_layout(load_config(None, ["exchange.topology=2x2"]), 6)
