"""Floor 7: studies made of whole runs."""

from penstock.lab.cases import AXES, Case, layout_cases
from penstock.lab.chaos import ChaosResult, Command, run_chaos
from penstock.lab.equivalence import Result, check
from penstock.lab.link import Link, parse_link
from penstock.lab.namespaces import NodeBytes, Nodes, emulated_nodes
from penstock.lab.network import NetworkResult, run_in_network
from penstock.lab.node_ranks import ranks_on_nodes
from penstock.lab.verify import table, verify

__all__ = [
    "AXES", "Case", "ChaosResult", "Command", "Link", "NetworkResult", "NodeBytes", "Nodes", "Result", "check", "emulated_nodes", "layout_cases",
    "parse_link", "ranks_on_nodes", "run_chaos", "run_in_network", "table", "verify",
]
