"""`penstock lab`: studies made of whole runs. As in `app.py`, commands parse, call and print."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from penstock.cli import output
from penstock.cli.options import Json

lab = typer.Typer(name="lab", help="Studies made of whole runs.", no_args_is_help=True)


@lab.command("network", context_settings={"allow_interspersed_args": False})
def network(
    context: typer.Context,
    command: Annotated[Optional[list[str]], typer.Argument(metavar="-- COMMAND ARGS…", help="A Penstock command, e.g. train model.toml.")] = None,  # noqa: UP045
    nodes: Annotated[int, typer.Option("--nodes", help="Nodes of the cluster.")] = 2,
    ranks_per_node: Annotated[int, typer.Option("--ranks-per-node", help="Ranks on each node.")] = 2,
    bandwidth: Annotated[str, typer.Option("--bandwidth", help="What each node's link carries in each direction, in tc's notation.")] = "1gbit",
    latency: Annotated[Optional[str], typer.Option("--latency", help="Of a packet from node to node, e.g. 1ms.")] = None,  # noqa: UP045
    loss: Annotated[Optional[str], typer.Option("--loss", help="Share of packets lost, e.g. 0.1%.")] = None,  # noqa: UP045
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout: the network's and the command's.")] = False,
) -> None:
    """Run a command on an emulated cluster on this machine: nodes joined by a network of given bandwidth (Linux, root)."""
    from penstock.lab import parse_link, run_in_network

    words = command or []
    json = json or "--json" in words
    known = context.find_root().command.list_commands(context)  # type: ignore[attr-defined]
    result = run_in_network(words, known, nodes, ranks_per_node, parse_link(bandwidth, latency, loss), json)
    output.show(result.as_dict(), json, lambda _: result.text())
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def chaos(
    context: typer.Context,
    command: Annotated[Optional[list[str]], typer.Argument(metavar="-- train ARGS…", help="The command, e.g. train model.toml --nproc 4.")] = None,  # noqa: UP045
    faults: Annotated[int, typer.Option("--faults", help="Faults to plant.")] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which faults, when and where: the same seed plants the same.")] = 0,
    kinds: Annotated[Optional[str], typer.Option("--kinds", metavar="KIND,…", help="Kinds of faults; none: all that can be planted.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Train under planted faults, and hold the final weights against those of the same run left alone; exit code 1 if a fault was not survived."""
    from penstock.config import UserError
    from penstock.lab import Command, run_chaos

    words = command or []
    train = context.find_root().command.get_command(context, "train")  # type: ignore[attr-defined]
    if words[:1] != ["train"]:
        raise UserError("the fault lab runs `train`; write e.g. `penstock chaos -- train model.toml --nproc 4`")
    given = train.make_context("train", words[1:]).params
    found = Command(given["config"], tuple(given["sets"] or ()), given["nproc"])
    chosen = [kind.strip() for kind in kinds.split(",")] if kinds else []
    result = run_chaos(found, given["run_dir"], faults, seed, chosen, lambda line: print(line, file=sys.stderr, flush=True))
    output.show(result.as_dict(), json or given["json"], lambda _: result.text())
    if not result.survived:
        raise typer.Exit(1)
