"""A run's newest values as OpenMetrics (and Prometheus) text, and an endpoint on the loopback interface that a Prometheus server scrapes.

    # TYPE penstock_grad_norm gauge
    penstock_grad_norm{run="mine",where="layer.03.ffn"} 0.25

A quantity of one unit is a family, `where` a label, the unit a suffix as the standard has it (`penstock_time_seconds`). Where ranks differ, families
such as `penstock_high_time_seconds` hold the lowest and highest rank's value and `penstock_high_rank_time_seconds` which rank that is. Written by the
OpenMetrics 1.0 standard; a client that does not ask for it gets the older Prometheus format. Cost: one look at the newest rows a scrape, none for
training. When not to use it: for history, which the store has; and beyond this host, where a proxy with TLS belongs in front.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from penstock.config import UserError
from penstock.monitor.export.latest import Latest
from penstock.monitor.series.kinds import Kind

OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "penstock_"
#: Names of units; what is not here is written as it is, with `/` as `per`.
UNITS = {"s": "seconds", "1": "", "": ""}
#: Seconds that a client may take for its request.
REQUEST_S = 10.0


def family(quantity: str, unit: str) -> tuple[str, str]:
    """The name of a quantity's family, and its unit, empty if it has none."""
    unit = UNITS.get(unit, re.sub(r"\W+", "_", unit.replace("/", "_per_")))
    name = PREFIX + re.sub(r"\W", "_", quantity)
    return (name if not unit or name.endswith("_" + unit) else f"{name}_{unit}"), unit


def exposition(run: str, rows: Iterable[Latest], open_metrics: bool = True) -> str:
    """The text for a scrape."""
    families: dict[tuple[str, str], list[tuple[Latest, str]]] = {}
    for row in rows:
        quantity, _, where = row.name.partition("/")
        families.setdefault(family(quantity, row.kind.unit), []).append((row, where))
    lines: list[str] = []
    for (name, unit), members in sorted(families.items()):
        unit, rest = unit if open_metrics else "", name.removeprefix(PREFIX)
        _family(lines, name, unit, _help([row.kind for row, _ in members]), [(where, row.value) for row, where in members], run)
        unlike = [(row, where) for row, where in members if row.low_rank != row.high_rank]
        for end in ("low", "high") if unlike else ():
            values = [(where, getattr(row, end)) for row, where in unlike]
            ranks = [(where, getattr(row, f"{end}_rank")) for row, where in unlike]
            _family(lines, f"{PREFIX}{end}_{rest}", unit, f"the {end}est rank's {rest}", values, run)
            _family(lines, f"{PREFIX}{end}_rank_{rest}", "", f"which rank has the {end}est {rest}", ranks, run)
    return "\n".join([*lines, "# EOF"] if open_metrics else lines) + "\n"


def serve(port: int, scrape: Callable[[bool], str]) -> ThreadingHTTPServer:
    """Serve `/metrics` on 127.0.0.1 from a thread; port 0 takes a free one. Raises `UserError` if the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S

        def do_GET(self) -> None:
            """Answer a scrape."""
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "only /metrics is here")
                return
            as_open = "application/openmetrics-text" in self.headers.get("Accept", "")
            try:
                body = scrape(as_open).encode()
            except Exception as error:  # of one scrape; the next may do
                self.send_error(503, str(error).splitlines()[0][:200] if str(error) else type(error).__name__)
                return
            self.send_response(200)
            self.send_header("Content-Type", OPEN if as_open else PLAIN)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot serve on 127.0.0.1:{port}: {error}; choose another port, or 0 for a free one") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _family(lines: list[str], name: str, unit: str, text: str, values: list[tuple[str, float]], run: str) -> None:
    lines.append(f"# TYPE {name} gauge")
    if unit:
        lines.append(f"# UNIT {name} {unit}")
    lines.append(f"# HELP {name} {_escaped(text)}")
    lines += [f'{name}{{run="{_escaped(run)}",where="{_escaped(where)}"}} {_number(value)}' for where, value in values]


def _help(kinds: list[Kind]) -> str:
    texts = list(dict.fromkeys(kind.meaning for kind in kinds))
    return texts[0] if len(texts) == 1 else "; ".join(texts[:3]) + ("; …" if len(texts) > 3 else "")


def _number(value: float) -> str:
    return repr(value).replace("nan", "NaN").replace("inf", "Inf").replace("Inf", "+Inf" if value > 0 else "Inf")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
