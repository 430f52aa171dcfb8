"""The report's part about what ranks sent each other: bytes and seconds by axis and purpose, and what of the waiting was hidden.

Rows are those of the metrics store: for each `axis.purpose` the `…_bytes`, `…_calls`, `…_s` and `…_between_bytes` of the lead rank's steps. Its
table is their mean over the recorded steps (what lies between two steps, such as an evaluation, counts to the later one). Sums over all ranks
come from the summary.
"""

from __future__ import annotations

from html import escape

from penstock.monitor.sections import Row, series
from penstock.monitor.svg import Line, chart
from penstock.monitor.units import count, seconds, size

HEADINGS = ("axis", "purpose", "sent", "between nodes", "calls", "waited")
NOTE = "The table has the lead rank's mean step; gradients that go to other nodes, and snapshots (store), are waited for by threads beside it."


def exchange_part(rows: list[Row], summary: Row) -> str:
    """The part with its heading; empty where one rank trained alone."""
    names = sorted({key.removesuffix("_calls") for row in rows for key in row if key.endswith("_calls")})
    if not names:
        return ""
    lines = sorted((_line(name, rows) for name in names), reverse=True)
    cells = "".join(f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for tag, text in line)}</tr>" for *_, line in lines)
    head = "".join(f"<th>{name}</th>" for name in HEADINGS)
    table = f'<div class="card traffic"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
    told = f"{_told(summary.get('exchange') or {})}{NOTE}"
    return f'<h2>Exchange</h2><p class="note">{escape(told)}</p><div class="pair">{table}{exposure_chart(rows)}</div>'


def exposure_chart(rows: list[Row]) -> str:
    """Seconds of each step's exchange that the step waited for, and those hidden behind its backward pass; empty where there are none."""
    exposed, span = (dict(series(rows, f"exchange.{key}_s")) for key in ("exposed", "span"))
    if not exposed and not span:
        return ""
    steps = sorted(exposed | span)
    hidden = [(step, max(0.0, span.get(step, 0.0) - exposed.get(step, 0.0))) for step in steps]
    lines = [Line("waited for", [(step, exposed.get(step, 0.0)) for step in steps], "second"), Line("hidden behind backward", hidden, "third")]
    return chart("Exchange of gradients", lines, "seconds", from_zero=True, show=seconds)


def _line(name: str, rows: list[Row]) -> tuple[float, float, str, list[tuple[str, str]]]:
    """Bytes, seconds and name to order by, and the cells of a table's row."""
    axis, _, purpose = name.partition(".")
    keys = ("bytes", "between_bytes", "calls", "s")
    sent, between, calls, waited = (sum(row.get(f"{name}_{key}", 0.0) for row in rows) / len(rows) for key in keys)
    cells = [size(sent), size(between) if between else "–", count(calls), seconds(waited) if waited else "–"]
    return sent, waited, name, [("th", axis), ("th", purpose.replace("_", " ")), *(("td", cell) for cell in cells)]


def _told(exchange: Row) -> str:
    """The summary's sums in a sentence or two."""
    if not exchange:
        return ""
    nodes, share = exchange["nodes"], exchange["exposed_share"]
    sent = f"In {exchange['steps']:,} steps all ranks together sent {size(exchange['bytes_inside'])} inside " + ("nodes" if nodes > 1 else "the node")
    if nodes > 1:
        sent += f" and {size(exchange['bytes_between'])} between {nodes} nodes"
    if exchange["saved"] is not None:
        sent += f" ({exchange['kind']}: {exchange['saved']:.1%} less than dense float32 gradients)"
    waited = f"steps waited {seconds(exchange['exposed_s'])} for the exchange of gradients ({share:.0%} of their time)"
    return f"{sent}; {waited}, and for another {seconds(exchange['hidden_s'])} it was hidden. "
