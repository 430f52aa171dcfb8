"""`penstock lab`: studies made of whole runs. As in `app.py`, commands parse, call and print."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from penstock.cli import output

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
