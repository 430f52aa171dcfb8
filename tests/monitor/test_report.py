"""The report of a run: whole, honest where something is missing, safe to open, and readable on a phone."""

import json
import math
import random
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest

from penstock.config import load_config, to_toml
from penstock.monitor import MetricStore, write_report
from penstock.monitor.axis import step_axis, value_axis
from penstock.monitor.svg import Line, chart, smoothed, thinned


def train_row(step, **more):
    return {"step": step, "tokens": step * 100, "loss": 5 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1234.5, "mfu": 0.31,
            "step_s": 0.1, "data_s": 0.001, "forward_backward_s": 0.08, "exchange_s": 0.0, "optimizer_s": 0.01, "memory_bytes": 1 << 28} | more  # fmt: skip


def exchange_row(step):
    """What two nodes of two ranks add to a row."""
    return {"node.gradients_bytes": 5 << 20, "node.gradients_between_bytes": 5 << 20, "node.gradients_calls": 3, "node.gradients_s": 0.25,
            "world.expert_load_bytes": 64, "world.expert_load_calls": 1, "exchange.exposed_s": 0.05 * step, "exchange.span_s": 0.1}  # fmt: skip


def make_run(folder, steps, state="finished", **more):
    store = MetricStore(folder / "metrics")
    for step in range(1, steps + 1):
        store.append("train", train_row(step, **more))
        if step % 10 == 0:
            store.append("eval", {"step": step, "tokens": step * 100, "val_loss": 4 / step})
            store.append("sample", {"step": step, "prompt": "def ", "text": f"<script>alert('x')</script> & {'long' * 50} {step}"})
            store.append("event", {"step": step, "what": "snapshot", "text": f"saved <b>it</b> at {step}"})
    store.append("event", {"step": steps, "what": "failure", "text": "loss is <NaN>"})
    store.close()
    identity = {"run": "r", "created": "2026-11-24T16:09:59+0000", "command": "penstock train <x>", "environment": {"torch": "2", "memory_bytes": 2**35}}
    summary = {"state": state, "step": steps, "tokens": steps * 100, "parameters": 10**6, "tokens_per_s": 1e4, "mfu": 0.4, "wall_s": 75, "val_loss": None}
    (folder / "config.toml").write_text(to_toml(load_config("tiny")))
    (folder / "run.json").write_text(json.dumps(identity | {"data": {"bytes": 5000}}))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Wellformed(HTMLParser):
    """Fails on a tag closed out of order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(folder):
    page = write_report(folder).read_text()
    parser = Wellformed()
    parser.feed(page)
    assert parser.open == [] and "nan " not in page.lower().replace("is &lt;nan&gt;", "")
    return page


def test_the_report_holds_everything_escaped_and_asks_nothing_of_the_network(tmp_path):
    page = report(make_run(tmp_path, 30))
    assert "<script" not in page and "&lt;script&gt;" in page and "penstock train &lt;x&gt;" in page
    assert "http" not in page and "url(" not in page and "@import" not in page and "src=" not in page
    for words in ("Loss", "Throughput", "after step 30", "after step 20", "after step 10", "muon_lr", "saved &lt;b&gt;it", "1m 15s", "32 GiB", "2026-11-24 16:09:59 UTC"):
        assert words in page, words
    assert page.count('class="changed"') >= 5 and 'title="default: 0.001"' in page


def test_the_exchange_of_several_ranks_is_told_by_axis_and_purpose_exposed_and_hidden(tmp_path):
    store = MetricStore(make_run(tmp_path, 0) / "metrics")
    for step in range(1, 5):
        store.append("train", train_row(step, **exchange_row(step)))
    summary = json.loads((tmp_path / "summary.json").read_text())
    told = {"kind": "topk", "nodes": 2, "steps": 4, "bytes_between": 20 << 20, "bytes_inside": 3 << 20, "exchange_bytes": 20 << 20, "dense_bytes": 200 << 20,
            "saved": 0.9, "exposed_s": 0.5, "hidden_s": 0.05, "exposed_share": 0.25}  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"exchange": told}))
    page = report(tmp_path)
    table = re.search(r'<div class="card traffic">.*?</table>', page, re.S)[0]
    cells = [re.findall(r"<t[dh]>(.*?)</t[dh]>", line) for line in table.split("<tr>")[2:]]
    assert cells == [["node", "gradients", "5 MiB", "5 MiB", "3", "250 ms"], ["world", "expert load", "64 B", "–", "1", "–"]]
    assert "3 MiB inside nodes and 20 MiB between 2 nodes (topk: 90.0% less" in page and "waited 500 ms" in page and "(25% of" in page
    chart = re.search(r'waited for <b>(.*?)</b>.*?hidden behind backward <b>(.*?)</b>.*?aria-label="Exchange of gradients"', page, re.S)
    assert chart.groups() == ("200 ms", "0 ms")  # waiting for what the span leaves out hides nothing
    (tmp_path / "summary.json").unlink()
    assert "Exchange of gradients" in report(tmp_path)  # a run that ended early


def test_a_run_of_one_rank_has_no_exchange_to_tell(tmp_path):
    assert "<h2>Exchange" not in report(make_run(tmp_path, 3))


def test_a_failed_run_says_why_at_the_top(tmp_path):
    assert '<p class="failure">loss is &lt;NaN&gt;</p>' in report(make_run(tmp_path, 10, state="failed"))
    assert 'class="failure"' not in report(make_run(tmp_path, 10, state="finished"))


@pytest.mark.parametrize("missing", [("summary.json",), ("config.toml", "run.json"), ("summary.json", "config.toml", "run.json", "metrics"), ("metrics",)])
@pytest.mark.parametrize("steps", [0, 1, 20])
def test_a_run_that_ended_early_has_a_report_too(tmp_path, steps, missing):
    make_run(tmp_path, steps)
    for name in missing:
        (shutil.rmtree if name == "metrics" else lambda p: p.unlink())(tmp_path / name)
    page = report(tmp_path)
    assert ("unfinished" in page) == ("summary.json" in missing)
    assert ("no settings recorded" in page) == ("config.toml" in missing)
    assert ("nothing recorded yet" in page) == (steps == 0 or "metrics" in missing)


def test_settings_of_another_version_or_a_damaged_file_are_not_passed_over(tmp_path):
    make_run(tmp_path, 1)
    (tmp_path / "config.toml").write_text("[optim]\nlr = 0.5\nfuture = 7\n")
    assert "<th>future</th><td>7</td>" in report(tmp_path)
    (tmp_path / "config.toml").write_text("[optim\n")
    assert "config.toml is damaged" in report(tmp_path)


def test_many_snapshots_hide_no_other_event(tmp_path):
    store = MetricStore(tmp_path / "metrics")
    store.append("event", {"step": 1, "what": "resume", "text": "went on"})
    for step in range(300):
        store.append("event", {"step": step, "what": "snapshot", "text": f"saved {step}."})
    page = report(tmp_path)
    assert "went on" in page and "saved 299." in page and "saved 3." not in page and "292 earlier ones" in page


def test_losses_that_are_not_finite_are_counted_and_break_the_line(tmp_path):
    make_run(tmp_path, 0)
    store = MetricStore(tmp_path / "metrics")
    for step in range(1, 101):
        store.append("train", train_row(step, loss=math.nan if 40 <= step < 50 else 2.0, memory_bytes=1010 * 2**20))
    page = report(tmp_path)
    assert "10 not finite" in page and "1010 MiB" in page
    loss = re.search(r'aria-label="Loss">.*?</svg>', page, re.S)[0]
    assert [path.count("M") for path in re.findall(r' d="([^"]*)"', loss)] == [2, 2]


def test_a_long_run_has_a_small_report_that_keeps_its_spikes(tmp_path):
    rows = [train_row(step, grad_norm=random.random(), time=0.0) for step in range(1, 20_001)]
    rows[7_777]["loss"] = 4321.0
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    begin = time.perf_counter()
    page = report(tmp_path)
    assert len(page) < 300_000 and time.perf_counter() - begin < 20
    line = re.search(r'aria-label="Loss">.*?class="raw" d="([^"]*)"', page, re.S)[1]
    heights = [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", line)]
    assert len(heights) < 700 and min(heights) < 0.5 * sorted(heights)[1]


def test_thinning_keeps_ends_and_extremes():
    points = [(float(i), math.sin(i / 500)) for i in range(100_000)]
    points[77_777] = (77_777.0, 50.0)
    kept = thinned(points)
    assert len(kept) < 700 and (77_777.0, 50.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]
    assert kept == sorted(kept)


def test_smoothing_is_the_mean_of_the_neighbours_and_steps_over_gaps():
    values = [random.random() for _ in range(200)]
    means = smoothed(list(enumerate(values)), share=0.02)
    assert means[100] == (100, pytest.approx(sum(values[96:105]) / 9)) and means[0] == (0, pytest.approx(values[0]))
    gap = smoothed([(1, 1.0), (2, math.nan), (3, 3.0), (4, 5.0)])
    assert math.isnan(gap[1][1]) and [y for _, y in gap if y == y] == [1.0, 3.0, 4.0]


@pytest.mark.parametrize("log", [False, True])
def test_axes_hold_all_values_between_round_ticks_that_read_differently(log):
    for _ in range(500):
        middle = 10 ** random.uniform(-7, 11)
        values = [middle * (1 + random.choice([1e-4, 0.1, 30.0]) * random.random()) for _ in range(5)]
        axis = value_axis(values, log=log, from_zero=random.random() < 0.5)
        labels = [label for _, label in axis.ticks]
        assert all(-1e-9 <= axis.share(v) <= 1 + 1e-9 for v in [*values, *(t for t, _ in axis.ticks)])
        assert 2 <= len(labels) <= 8 and len(set(labels)) == len(labels), (values, labels)
        for tick, label in axis.ticks:
            number = float(label.rstrip("kMG")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(label[-1], 1.0)
            assert number == pytest.approx(tick, rel=1e-6, abs=1e-6 * axis.high), (values, labels)


def test_steps_are_counted_in_whole_numbers():
    assert [label for _, label in step_axis([1, 2, 3]).ticks] == ["1", "2", "3"]
    assert [label for _, label in step_axis([7]).ticks] == ["7"]
    assert [label for _, label in step_axis([1, 100_000]).ticks] == ["20k", "40k", "60k", "80k", "100k"]


def test_a_chart_of_nothing_or_of_nan_says_so():
    assert "nothing recorded" in chart("Loss", [Line("loss", [])])
    lost = chart("Loss", [Line("loss", [(1, math.nan), (2, math.inf)])])
    assert "nothing recorded" in lost and "2 not finite" in lost
    one = chart("Loss", [Line("loss", [(1, 2.0)])])
    assert "<circle" in one and "nan" not in one.lower()


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 760, 1400])
def test_the_report_fits_the_window(tmp_path, width):
    """A frame as wide as the window under test, because a browser's own window cannot be as narrow as a phone."""
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed, so no browser looks at the report")
    page = write_report(make_run(tmp_path, 200, expert_load_max_over_mean=1.2, **exchange_row(1)))
    probe = "<script>parent.postMessage(document.documentElement.scrollWidth - innerWidth + '/' + innerWidth, '*')</script></body>"
    page.write_text(page.read_text().replace("</body>", probe))
    outer = tmp_path / "outer.html"
    outer.write_text(f'<script>onmessage = e => document.title = "overflow " + e.data</script><iframe width="{width}" height="900" frameborder="0" src="report.html"></iframe>')
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000",
         "--virtual-time-budget=3000", "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    overflow, inner = map(int, done.stdout.split("<title>overflow ")[1].split("<")[0].split("/"))
    assert inner == width and overflow <= 0, f"the page is {overflow} pixels wider than a window of {width}"
    assert "CONSOLE" not in done.stderr, done.stderr
