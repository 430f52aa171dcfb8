"""A run's page frozen into one HTML file: the page itself with its script and style inside, and the answers that it would have asked for.

    <script type="application/json" id="frozen">{"/frozen": {about}, "/api/v1/runs/ID/overview": {…}, …}</script>

The page reads an answer from there instead of from the network if the element is there. Answers are those of the server's own addresses, asked in
this process; a metric's course is at `…/series?name=NAME`. Courses are thinned to `POINTS`, or fewer where a run has so many metrics that the file
would become larger than `MOST_BYTES`, and `/frozen` says which are. Every `<` of the data is written `\\u003c`, so no name or sample ends the
element; a content policy lets nothing run but the page's own script, by its digest, and nothing be fetched. Cost: the time of the queries; a file of
some MB. When not to use it: while the run trains and others can reach the server.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fastapi import FastAPI

from penstock import __version__
from penstock.config import UserError, disk_errors
from penstock.dashboard.access import Access, new_token
from penstock.dashboard.app import PREFIX, build_app
from penstock.dashboard.page import FOLDER, INDEX
from penstock.dashboard.place import id_of_path
from penstock.dashboard.plain import to_json
from penstock.store.runs import Run

#: Points a metric at most and at least, and bytes of all courses that decide between them.
POINTS, LEAST_POINTS, MOST_BYTES = 2000, 100, 12 << 20
#: Bytes of the pictures of ranks over time.
GRID_BYTES = 6 << 20
#: Bytes of a point in the file: 44, written in base64.
_POINT_BYTES = 44 * 4 / 3
#: What is asked of a run, below its address.
PATHS = ("", "/overview", "/metrics", "/alerts", "/history", "/inside/ranks", "/inside/pipeline", "/inside/layout")
_SCRIPT = re.compile(r'<script\b[^>]*\bsrc="/?([^"]+)"[^>]*></script>')
_STYLE = re.compile(r'<link\b[^>]*\bhref="/?([^"]+\.css)"[^>]*>')
_LINK = re.compile(r'[ \t]*<link\b[^>]*\bhref="(?!data:)[^"]+"[^>]*>\n?')


def freeze(run: Run, out: Path | None = None, page: Path = FOLDER) -> dict[str, Any]:
    """Write a run's page into a file; returns where and what was thinned. Raises `UserError` where the page was not built, or the disk refuses."""
    file = out or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name)}.html")
    if not (page / INDEX).is_file():
        raise UserError(f"the page was not built ({page / INDEX} is missing); run `make page` in a checkout, or install a wheel that has it")
    answers = asyncio.run(_answers(run))
    html = _inlined(page, to_json(answers).replace("<", "\\u003c"))
    about = answers["/frozen"]
    if not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent} to write {file.name} to; make it, or choose another --out")
    with disk_errors(file.parent, f"writing {file.name}"):
        file.write_text(html, encoding="utf-8", errors="replace")
    told = {"run": str(run.path), "file": str(file), "bytes": file.stat().st_size, "points": about["points"], "metrics": about["metrics"]}
    return told | {"thinned": len(about["thinned"])}


async def _answers(run: Run) -> dict[str, Any]:
    """What the page asks for, by address as a browser writes it."""
    path = run.path.resolve()
    app = build_app(path.parent, Access("127.0.0.1", new_token()))
    here = f"{PREFIX}/runs/{_encoded(id_of_path(path.name))}"
    found: dict[str, Any] = {f"{here}{rest}": json.loads(await ask(app, f"{here}{rest}")) for rest in PATHS}
    names = [metric["name"] for metric in found[f"{here}/metrics"]["metrics"]]
    points = int(min(POINTS, max(LEAST_POINTS, MOST_BYTES / (_POINT_BYTES * max(1, len(names))))))
    thinned = []
    for name in names:
        address = f"{here}/series?name={_encoded(name)}"
        body = await ask(app, f"{address}&points={points}")
        found[address] = {"base64": base64.b64encode(body).decode()}
        course = json.loads(body[4 : 4 + int.from_bytes(body[:4], "little")])["courses"][0]
        thinned += [name] if course["rows"] < course["measured"] else []
    found |= await _grids(app, f"{here}/inside/ranks", found[f"{here}/inside/ranks"]["names"])
    row = found[here]["row"]
    nobody = {"may_act": False, "host": "", "version": __version__, "runs_dir": "", "pid": 0}
    found |= {f"{PREFIX}/runs": {"total": 1, "runs": [row]}, f"{PREFIX}/me": nobody}
    return found | {"/frozen": {"run": row["id"], "time": time.time(), "points": points, "metrics": len(names), "thinned": thinned}}


async def _grids(app: FastAPI, address: str, names: list[str]) -> dict[str, Any]:
    """Ranks over time of as many metrics as fit."""
    found: dict[str, Any] = {}
    size = 0
    for name in names:
        body = await ask(app, f"{address}?name={_encoded(name)}")
        size += len(body)
        if size > GRID_BYTES:
            break
        found[f"{address}?name={_encoded(name)}"] = json.loads(body)
    return found


async def ask(app: FastAPI, address: str) -> bytes:
    """What the application answers to a GET, without a network; raises `UserError` with its reason if that is no answer."""
    path, _, query = address.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": unquote(path),
        "raw_path": path.encode(), "query_string": query.encode(), "headers": [(b"host", b"127.0.0.1")], "client": None, "server": None,
    }  # fmt: skip
    parts, status = [], 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    body = b"".join(parts)
    if status != 200:
        raise UserError(str(json.loads(body)["error"]))
    return body


def _inlined(page: Path, data: str) -> str:
    """The page with script and style inside, the data, and a policy that lets only these count."""
    html = (page / INDEX).read_text(encoding="utf-8")
    root = page.resolve()
    scripts = [_harmless(_file(root, name)) for name in _SCRIPT.findall(html)]
    styles = [_file(root, name).replace("</", "<\\/") for name in _STYLE.findall(html)]
    html = _LINK.sub("", _SCRIPT.sub("", html))
    policy = (
        f"default-src 'none'; script-src {_digests(scripts)}; style-src {_digests(styles)}; img-src data: blob:; font-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' + "".join(f"<style>{style}</style>" for style in styles)
    frozen = f'<script type="application/json" id="frozen">{data}</script>'
    tail = frozen + "".join(f'<script type="module">{script}</script>' for script in scripts)
    before, _, after = html.partition("<head>")
    begin, end = after.rsplit("</body>", 1) if "</body>" in after else (after, "")
    return f"{before}<head>{head}{begin}{tail}</body>{end}"


def _file(root: Path, name: str) -> str:
    file = (root / name).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        raise UserError(f"the page was not built whole: {INDEX} names {name}, which is not there; run `make page`")
    return file.read_text(encoding="utf-8")


def _harmless(script: str) -> str:
    """A script that may stand in HTML: what would end its element only stands in its strings, where a backslash changes nothing."""
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE).replace("<!--", "<\\!--")


def _digests(texts: list[str]) -> str:
    found = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
    return " ".join(found) or "'none'"


def _encoded(text: str) -> str:
    """As a browser's `encodeURIComponent`."""
    return quote(text, safe="!~*'()")

