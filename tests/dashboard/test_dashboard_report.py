"""A page frozen into a file: the page's script and style inside, the answers of the server in it, nothing that a name could end or start."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest
from small_runs import penstock, refused
from tests.dashboard.asking import client, courses, thawed
from tests.dashboard.made_runs import small_run

from penstock.config import UserError
from penstock.dashboard import frozen
from penstock.store import Run

SCRIPT = "<script>alert(1)<!--<script>"


class Elements(html.parser.HTMLParser):
    """The scripts and styles of a page as a browser finds them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "style", "link", "meta"):
            self.inside = [tag, dict(attributes), ""]
            self.found.append(self.inside)

    def handle_data(self, data):
        if self.inside and self.inside[0] in ("script", "style"):
            self.inside[2] += data

    def handle_endtag(self, tag):
        self.inside = None


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "page"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Penstock</title>\n<link rel="icon" href="/icon.svg">\n'
        '<link rel="stylesheet" crossorigin href="/assets/app.css">\n<script type="module" crossorigin src="/assets/app.js"></script>\n</head><body><div id="app"></div></body></html>'
    )
    (folder / "assets" / "app.js").write_text('const end = "</script><!--"; document.title = end')
    (folder / "assets" / "app.css").write_text("body { color: red }")
    return folder


def test_a_frozen_page_holds_what_the_server_answers(tmp_path, page):
    run = small_run(tmp_path / "runs", SCRIPT, steps=50)
    run.event("note", "</script><script>alert(2)</script>", 3)
    told = frozen.freeze(Run(run.path), tmp_path / "out.html", page)
    text = (tmp_path / "out.html").read_text()
    elements = Elements(text).found
    assert [tag for tag, _, _ in elements] == ["meta", "style", "meta", "script", "script"] and told["bytes"] == len(text.encode())
    script = elements[-1][2]
    assert script == 'const end = "<\\/script><\\!--"; document.title = end'
    answers, measured = thawed(text)
    here = next(address for address in answers if address.endswith("/overview")).removesuffix("/overview")
    with client(tmp_path / "runs") as browser:
        for rest in ("", "/metrics", "/alerts", "/history"):
            assert answers[here + rest] == browser.get(here + rest).json()
        assert answers[f"{here}/inside/layout"] == browser.get(f"{here}/inside/layout").json()
        assert answers[f"{here}/overview"] | {"time": 0} == browser.get(f"{here}/overview").json() | {"time": 0}
        header, found = courses(measured)
        assert header["missing"] == [] and found["loss/total"]["step"].tolist() == list(range(1, 51))
        assert list(found) == [metric["name"] for metric in answers[f"{here}/metrics"]["metrics"]]
        for name in ("loss/total", "wait/total", "grad_norm/total"):
            _, live = courses(browser.get(f"{here}/series", params={"name": name, "points": frozen.POINTS}).content)
            assert all(np.array_equal(live[name][column], found[name][column], equal_nan=True) for column in live[name])
    assert answers["/frozen"]["thinned"] == [] and answers["/api/v1/me"]["may_act"] is False


def test_nothing_but_the_pages_own_script_may_run_and_nothing_be_fetched(tmp_path, page):
    run = small_run(tmp_path / "runs", steps=3, ranks=1, layers=1)
    frozen.freeze(Run(run.path), tmp_path / "out.html", page)
    elements = Elements((tmp_path / "out.html").read_text()).found
    policy = elements[0][1]["content"]
    for _, attributes, content in elements[1:]:
        assert "src" not in attributes and "href" not in attributes
        if attributes.get("type") == "module" or content.startswith("body"):
            assert base64.b64encode(__import__("hashlib").sha256(content.encode()).digest()).decode() in policy
    assert "unsafe" not in policy and re.search("default-src 'none'", policy) and "connect-src" not in policy


def test_many_metrics_are_thinned_to_a_bounded_file_and_it_is_said(tmp_path, page, monkeypatch):
    run = small_run(tmp_path / "runs", steps=400, ranks=1, layers=2)
    monkeypatch.setattr(frozen, "MOST_BYTES", 400_000)
    told = frozen.freeze(Run(run.path), tmp_path / "out.html", page)
    answers, measured = thawed((tmp_path / "out.html").read_text())
    assert told["bytes"] < 400_000 and max(header["rows"] for header in courses(measured)[0]["courses"]) <= told["points"] and told["points"] == answers["/frozen"]["points"] < 400
    assert "loss/total" in answers["/frozen"]["thinned"] and told["thinned"] == len(answers["/frozen"]["thinned"])


def test_what_cannot_be_frozen_is_refused(tmp_path, page):
    run = Run(small_run(tmp_path / "runs", steps=3, ranks=1, layers=1).path)
    with pytest.raises(UserError, match="make page"):
        frozen.freeze(run, None, tmp_path / "no page")
    with pytest.raises(UserError, match="there is no folder"):
        frozen.freeze(run, tmp_path / "no folder" / "out.html", page)
    (page / "assets" / "app.js").unlink()
    with pytest.raises(UserError, match=r"app\.js, which is not there"):
        frozen.freeze(run, tmp_path / "out.html", page)
    (run.path / "run.json").write_text("{torn")
    with pytest.raises(UserError, match="damaged"):
        frozen.freeze(run, tmp_path / "out.html", page)
    assert "no run 'nobody'" in refused("report", "nobody", "--runs-dir", tmp_path / "runs")


def test_the_command_writes_the_file_or_says_what_is_missing(tmp_path):
    run = small_run(tmp_path / "runs", steps=3, ranks=1, layers=1)
    done = penstock("report", run.path, "--out", tmp_path / "out.html", "--json", check=False)
    if (frozen.FOLDER / "index.html").is_file():
        assert json.loads(done.stdout)["file"] == str(tmp_path / "out.html") and (tmp_path / "out.html").stat().st_size > 1000
    else:
        assert done.returncode == 2 and "make page" in done.stderr
