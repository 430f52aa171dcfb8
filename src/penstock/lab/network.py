"""`penstock lab network`: any Penstock command on an emulated cluster, and what its nodes sent and received.

Nodes are network namespaces with links of limited bandwidth (`namespaces.py`, `link.py`). `train` and `resume` run as ranks on all nodes
(`node_ranks.py`), any other command as one process on node 0. Bytes are those of the kernel's counters of each node's interface, from before the
start to after the end; seconds are the whole command's, starting Python included, so the mean rate of a short run says little.

When not to use it: to judge a machine's speed. The nodes share its cores; only the network is another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.config import UserError, nearest
from penstock.engine import check_ranks, cores
from penstock.lab.link import Link, rate_text
from penstock.lab.namespaces import NodeBytes, emulated_nodes
from penstock.lab.node_ranks import ranks_on_nodes

#: Commands that run as one rank of several.
RANKED = ("train", "resume")
MEND = "if the run has a snapshot, go on from it with `penstock resume`"


@dataclass(frozen=True)
class NetworkResult:
    """A command's end, and the traffic of each node meanwhile."""

    link: Link
    ranks_per_node: int
    seconds: float
    nodes: tuple[NodeBytes, ...]
    exit_code: int
    #: What the command printed with `--json`, if it did.
    command: Any = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: bandwidth in bit/s, rates in bit/s over the whole command, shares of the link's capacity."""
        network = {
            "bandwidth": self.link.bits_per_s, "latency_s": self.link.latency_s, "loss": self.link.loss, "ranks_per_node": self.ranks_per_node,
            "seconds": self.seconds, "nodes": [self._row(node) for node in self.nodes],
        }  # fmt: skip
        return {"network": network, "command": self.command}

    def text(self) -> str:
        """A short table."""
        extras = [f"{self.link.latency_s * 1e3:g} ms latency"] * (self.link.latency_s > 0) + [f"{self.link.loss:.3%} loss"] * (self.link.loss > 0)
        shape = f"{len(self.nodes)} nodes × {self.ranks_per_node} ranks" if self.ranks_per_node else f"{len(self.nodes)} nodes, one process on node 0"
        lines = [
            ", ".join([f"\nnetwork: {shape}", f"{rate_text(self.link.bits_per_s)} each way", *extras, f"{self.seconds:.1f} s"]),
            f"{'':8}{'sent':>12}{'mean rate':>14}{'of link':>9}   {'received':>12}{'mean rate':>14}{'of link':>9}",
        ]
        for node in self.nodes:
            row = self._row(node)
            halves = [f"{row[f'{way}_bytes'] / 1e6:>9.2f} MB{rate_text(row[f'{way}_rate']):>14}{row[f'{way}_share']:>9.1%}" for way in ("tx", "rx")]
            lines.append(f"node {node.node:<3}" + "   ".join(halves))
        return "\n".join(lines)

    def _row(self, node: NodeBytes) -> dict[str, Any]:
        rates = {way: 8 * count / self.seconds for way, count in (("tx", node.tx_bytes), ("rx", node.rx_bytes))}
        return {
            "node": node.node, "tx_bytes": node.tx_bytes, "rx_bytes": node.rx_bytes, "tx_rate": rates["tx"], "rx_rate": rates["rx"],
            "tx_share": rates["tx"] / self.link.bits_per_s, "rx_share": rates["rx"] / self.link.bits_per_s,
        }  # fmt: skip


def run_in_network(
    command: Sequence[str], known: Collection[str], nodes: int, ranks_per_node: int, link: Link, as_json: bool
) -> NetworkResult:
    """Run a Penstock command, one of those `known`, on `nodes` × `ranks_per_node` ranks.

    With `as_json` its standard output is kept, for `command`. Raises `UserError` for a command or a machine that will not do, else what a
    failing rank is told by.
    """
    check_command(command, known)
    if nodes < 1 or ranks_per_node < 1:
        raise UserError(f"--nodes {nodes} --ranks-per-node {ranks_per_node}: a cluster has at least one node with one rank")
    check_ranks(nodes * ranks_per_node, "cpu", cores(), "--nodes × --ranks-per-node =")
    alone = command[0] not in RANKED
    words = [*command, "--json"] if as_json and "--json" not in command else list(command)
    with emulated_nodes(nodes, link) as network:
        folder = network.folder
        argv = ["-m", "penstock", *words] if alone else ["-m", "penstock.cli.rank", str(folder), *words]
        before, began = network.counters(), time.perf_counter()
        with open(folder / "answer", "w+b") as answer:
            with ranks_on_nodes(network, argv, ranks_per_node, folder, answer if as_json else None, alone) as ranks:
                code = ranks.wait(MEND)
            seconds = time.perf_counter() - began
            answer.seek(0)
            printed = answer.read().decode(errors="replace")
        sent = tuple(NodeBytes(b.node, a.tx_bytes - b.tx_bytes, a.rx_bytes - b.rx_bytes) for b, a in zip(before, network.counters()))
    return NetworkResult(link, 0 if alone else ranks_per_node, seconds, sent, code, parse_answer(printed))


def check_command(command: Sequence[str], known: Collection[str]) -> None:
    """Raise `UserError` unless `command` is one of Penstock's that makes sense on emulated nodes."""
    example = "write e.g. `penstock lab network --nodes 2 -- train tiny`"
    if not command:
        raise UserError(f"the network lab needs a command of Penstock's to run; {example}")
    if command[0] == "lab":
        raise UserError(f"the network lab does not run inside itself; {example}")
    if command[0] not in known:
        raise UserError(f"{command[0]!r} is no command of Penstock's{nearest(command[0], known)}; {example}")
    if command[0] in RANKED and any(word.split("=")[0] == "--nproc" for word in command):
        raise UserError(f"--nproc has no say below the network lab: {command[0]} runs on --nodes × --ranks-per-node ranks; leave it out")


def parse_answer(printed: str) -> Any:
    """The JSON object in a command's standard output; None where there is none."""
    try:
        return json.loads(printed)
    except json.JSONDecodeError:
        return None
