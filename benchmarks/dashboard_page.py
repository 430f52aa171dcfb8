"""The dashboard's page in a browser: how soon it is there, how smoothly it moves, and how far it lags behind the run.

Headless Chromium at 1440 × 900 without a graphics card, at a server as users start it; nothing to compare with is measured. Aims stand in brackets.
`weight_kb`: the page's files (500). `first_paint_s`: from the request of the list of 1,000 runs to the first pixels (1 s); `list_s`: to its rows
(1 s). A run of 500 metrics × 1,000,000 steps: `open_s`, from the request of Explore to the last panel in sight drawn (2 s); `pan_fps` and `zoom_fps`,
frames a second while the axis moves in every frame (50), and `pan_cpu_ms`, what the page's thread computes for one. A run of 8 ranks and 172 metrics
that writes a step every 0.45 s: `pixel_s`, from the last rank's row in its log to the step on the overview, the median, and `pixel_most_s` (1 s).
`load`: the machine's load average before and after; all of this shares the cores with whatever else runs.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.dashboard import RUNS, STEP_S, Server
from benchmarks.dashboard_runs import LiveRun, long_run, many_runs

PAGE = Path(__file__).parents[1] / "src/penstock/dashboard/page"
MOVE_S, WATCHED_S, DEADLINE_MS = 3.0, 20.0, 120_000
#: Moves the axis by the wheel in every frame, there and back, and counts the frames.
_MOVE = """async ([zoom, seconds]) => {
  const over = document.querySelector('.panel .u-over'), box = over.getBoundingClientRect(), begin = performance.now();
  let frames = 0;
  while (performance.now() - begin < 1000 * seconds) {
    const by = Math.floor((performance.now() - begin) / 400) % 2 ? 20 : -20;
    const how = zoom ? { deltaY: by, ctrlKey: true } : { deltaX: by };
    const at = { clientX: box.left + box.width / 2, clientY: box.top + 20, bubbles: true, cancelable: true };
    over.dispatchEvent(new WheelEvent('wheel', { ...how, ...at }));
    await new Promise(requestAnimationFrame);
    frames++;
  }
  return frames;
}"""
#: Notes when each step appears.
_WATCH = """() => {
  window.seen = {};
  const look = () => {
    const step = Number((document.querySelector('.progress-words b')?.textContent ?? '').replace(/\\D/g, ''));
    window.seen[step] ??= Date.now() / 1000;
    requestAnimationFrame(look);
  };
  look();
}"""
#: When all panels on the screen are drawn: seconds since the request, else null.
_DRAWN = """() => {
  const shown = [...document.querySelectorAll('.panel')].filter((one) => one.getBoundingClientRect().top < innerHeight);
  return shown.length > 5 && shown.every((one) => one.querySelector('.figures').textContent.includes('last')) ? performance.now() / 1000 : null;
}"""


def run() -> dict[str, float | str]:
    """Measure all."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {"skipped": "playwright is not installed: pip install -e '.[dev]'"}
    browser = shutil.which("chromium")
    if browser is None:
        return {"skipped": "chromium is not installed: sh scripts/system-packages"}
    load = os.getloadavg()[0]
    figures: dict[str, float | str] = {"weight_kb": sum(file.stat().st_size for file in PAGE.iterdir()) / 1000}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        root = Path(folder)
        figures |= listed(opened, root / "many") | moved(opened, root / "long") | live(opened, root / "live")
        opened.close()
    return figures | {"load_before": load, "load_after": os.getloadavg()[0]}


@contextmanager
def tab(browser: Any) -> Iterator[Any]:
    """A tab that has nothing in its cache."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(DEADLINE_MS)
    yield page
    context.close()


def listed(browser: Any, root: Path) -> dict[str, float]:
    """The list of a thousand runs."""
    many_runs(root, RUNS)
    with Server(root) as server, tab(browser) as page:
        server.open("/runs").read()
        page.goto(f"http://127.0.0.1:{server.port}/")
        rows = page.wait_for_function("() => document.querySelectorAll('tr.run').length > 10 ? performance.now() / 1000 : null").json_value()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000")
        return {"first_paint_s": paint, "list_s": rows}


def moved(browser: Any, root: Path) -> dict[str, float]:
    """Panels of a long run: opened, panned, zoomed."""
    long_run(root)
    with Server(root) as server, tab(browser) as page:
        server.open("/runs").read()
        page.goto(f"http://127.0.0.1:{server.port}/r/long/explore")
        figures = {"open_s": page.wait_for_function(_DRAWN).json_value()}
        ticks = page.context.new_cdp_session(page)
        ticks.send("Performance.enable", {"timeDomain": "threadTicks"})
        for _ in range(2):
            page.keyboard.press("+")
            page.wait_for_timeout(1500)
        before = _task_s(ticks)
        frames = page.evaluate(_MOVE, [False, MOVE_S])
        figures |= {"pan_fps": frames / MOVE_S, "pan_cpu_ms": 1000 * (_task_s(ticks) - before) / frames}
        figures["zoom_fps"] = page.evaluate(_MOVE, [True, MOVE_S]) / MOVE_S
    shutil.rmtree(root)
    return figures


def _task_s(ticks: Any) -> float:
    """Processor seconds of the page's main thread so far."""
    return float(next(one["value"] for one in ticks.send("Performance.getMetrics")["metrics"] if one["name"] == "TaskDuration"))


def live(browser: Any, root: Path) -> dict[str, float]:
    """The overview of a run that trains."""
    written: dict[int, float] = {}
    with LiveRun(root) as training, Server(root) as server, tab(browser) as page:
        page.goto(f"http://127.0.0.1:{server.port}/r/live/overview")
        page.locator(".link.live").wait_for()
        page.evaluate(_WATCH)
        end = time.monotonic() + WATCHED_S
        while time.monotonic() < end:
            training.write()
            written[training.step] = time.time()
            page.wait_for_timeout(1000 * STEP_S)
        page.wait_for_timeout(2000)
        seen = {int(step): at for step, at in page.evaluate("window.seen").items()}
    shown = [min((at for later, at in seen.items() if later >= step), default=None) for step in written]
    delays = [at - began for at, began in zip(shown, written.values(), strict=True) if at is not None]
    return {"pixel_s": statistics.median(delays), "pixel_most_s": max(delays)}
