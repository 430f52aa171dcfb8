"""A real server of made-up runs, one of which goes on, and a real browser at it: what the tests of the page look through."""

import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
from tests.dashboard.made_runs import demo  # noqa: E402

from penstock.store.places.locks import writer_lock  # noqa: E402

expect = sync_api.expect
#: A busy machine takes its time.
expect.set_options(timeout=60_000)

TOKEN = "a-token-of-a-test-that-is-long-enough"
PAGE = Path(__file__).parents[2] / "src/penstock/dashboard/page"
AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
#: The hostile name that `made_runs.demo` gives to a run.
HOSTILE = "poisoned <img src=x onerror=alert(1)>"
STEP_S = 0.4
_SERVE = """
import sys
from pathlib import Path
from penstock.dashboard.serve import Wanted, serve
serve(Wanted(Path(sys.argv[1]), port=int(sys.argv[2])), lambda place: print(place.port, flush=True))
"""


def chromium():
    """The browser's path, or None."""
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


#: Marks of tests that look through it.
MARKS = [pytest.mark.slow, pytest.mark.skipif(chromium() is None, reason="chromium is not installed: sh scripts/system-packages")]


class Server:
    """The dashboard's server as a process of its own; may be ended and started again at the same port."""

    def __init__(self, runs_dir, environment):
        self.runs_dir, self._environment, self.port = runs_dir, environment, 0
        self.start()

    def start(self):
        command = [sys.executable, "-c", _SERVE, str(self.runs_dir), str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()


@contextmanager
def going_on(run, first):
    """Let a made run train on in a thread, some steps a second."""
    ending = threading.Event()

    def train():
        step = first
        while not ending.wait(STEP_S):
            run.rows(step, step, now=True)
            step += 1

    with writer_lock(run.path):
        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join(10)


@contextmanager
def world(folder, environment):
    """A server of the demo's runs, one of them going on."""
    live = demo(folder)
    with going_on(live, 1601):
        server = Server(folder, environment)
        try:
            yield server
        finally:
            server.stop()


def until(page, look, what, seconds=60.0):
    """Wait until something holds; the page's events (its address, too) are heard meanwhile."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        page.wait_for_timeout(50)
    return found


class Look:
    """A tab, and all that its console and network told."""

    def __init__(self, page, url):
        self.page, self.url, self.errors, self.elsewhere = page, url, [], []
        page.set_default_timeout(60_000)
        page.on("console", lambda told: self.errors.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else self.elsewhere.append(asked.url))

    def at(self, path):
        self.page.goto(self.url + path)
        return self.page


@contextmanager
def looking(browser, server, **how):
    """A tab of a desk's size, or as `how` says, whose page must tell of no error and ask nobody else."""
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, "accept_downloads": True, "reduced_motion": "reduce"} | how)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    made = Look(context.new_page(), server.url)
    yield made
    context.close()
    assert made.errors == [] and made.elsewhere == []


def panel(page, name):
    return page.locator(f".panel[data-name='{name}']").first


def drawn(page, name):
    """A panel whose course has come; returns it."""
    found = panel(page, name)
    expect(found.locator(".figures")).to_contain_text("last")
    return found
