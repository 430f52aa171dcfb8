"""What a run records and shows: rows that survive a crash, TensorBoard files, the live line, the report."""

import fcntl
import io
import json
import math
import os
import pty
import shutil
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from penstock.config import UserError, load_config, to_toml
from penstock.monitor import LiveLine, MetricStore, TensorBoardWriter, write_report
from penstock.monitor.svg import Line, chart, round_ticks, smoothed, thinned
from penstock.monitor.units import count, duration, size


def train_row(step, **more):
    return {"step": step, "tokens": step * 100, "loss": 5 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1234.5, "mfu": 0.31,
            "step_s": 0.1, "data_s": 0.001, "forward_backward_s": 0.08, "exchange_s": 0.0, "optimizer_s": 0.01, "memory_bytes": 1 << 28} | more  # fmt: skip


def make_run(folder, steps):
    store = MetricStore(folder / "metrics")
    for step in range(1, steps + 1):
        store.append("train", train_row(step))
        if step % 10 == 0:
            store.append("eval", {"step": step, "tokens": step * 100, "val_loss": 4 / step})
            store.append("sample", {"step": step, "prompt": "def ", "text": "<script>alert('x')</script> & more"})
    store.append("event", {"step": steps, "what": "snapshot", "text": "saved <b>it</b>"})
    store.close()
    (folder / "config.toml").write_text(to_toml(load_config("tiny")))
    (folder / "run.json").write_text(json.dumps({"run": "r", "created": "2026", "command": "penstock train <x>", "environment": {"torch": "2"}, "data": {"bytes": 5000}}))
    (folder / "summary.json").write_text(json.dumps({"state": "finished", "step": steps, "tokens": steps * 100, "parameters": 10**6, "tokens_per_s": 1e4, "mfu": 0.4, "wall_s": 75}))
    return folder


def test_rows_come_back_as_written(tmp_path):
    store = MetricStore(tmp_path)
    for step in range(5):
        store.append("train", {"step": step, "loss": step / 3, "note": "ä\n"})
    rows = MetricStore(tmp_path).read("train") if store.close() is None else []
    assert [(r["step"], r["loss"], r["note"]) for r in rows] == [(s, s / 3, "ä\n") for s in range(5)]
    assert abs(rows[-1]["time"] - time.time()) < 60
    assert store.read("nothing") == []


def test_a_line_torn_by_a_crash_is_skipped_and_the_rest_kept(tmp_path):
    store = MetricStore(tmp_path)
    for step in (1, 2, 3):
        store.append("train", {"step": step})
    store.close()
    file = tmp_path / "train.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    assert [r["step"] for r in MetricStore(tmp_path).read("train")] == [1, 2]
    again = MetricStore(tmp_path)
    again.truncate_after(1)
    again.append("train", {"step": 2})
    assert [r["step"] for r in again.read("train")] == [1, 2]


def test_rows_are_on_their_way_to_the_disk_at_once_and_after_a_torn_line_start_anew(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    store = MetricStore(tmp_path)
    store.append("train", {"step": 3})
    assert [r["step"] for r in MetricStore(tmp_path).read("train")] == [1, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system, whose writes fail as on a full disk")
def test_a_full_disk_is_said_with_its_mend(tmp_path):
    (tmp_path / "train.jsonl").symlink_to("/dev/full")
    store = MetricStore(tmp_path)
    with pytest.raises(UserError, match=r"is full while writing metrics.*free some space"):
        store.append("train", {"step": 1})
    store.close()


def test_reading_a_run_without_metrics_makes_no_folder(tmp_path):
    assert MetricStore(tmp_path / "metrics").read("train") == [] and not (tmp_path / "metrics").exists()


def test_resuming_writes_no_step_twice_and_keeps_events(tmp_path):
    store = MetricStore(tmp_path)
    for step in range(1, 9):
        store.append("train", {"step": step})
        store.append("event", {"step": step})
    store.truncate_after(5)
    store.append("train", {"step": 6})
    assert [r["step"] for r in store.read("train")] == [1, 2, 3, 4, 5, 6]
    assert len(store.read("event")) == 8


def test_tensorboard_reads_its_files_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardWriter(tmp_path)
    for step in (1, 2, 3, 4):
        first.write(step, {"train/loss": 1.0 / step, "train/note": "not a number"})
    first.close()
    second = TensorBoardWriter(tmp_path, resume_step=2)
    second.write(3, {"train/loss": 9.0})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(s.step, round(s.value, 4)) for s in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, 9.0)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_live_line_stays_on_one_line_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    live = LiveLine(200, out)
    for step in (1, 2, 200):
        live._drawn = -math.inf
        live.update(train_row(step, val_loss=1.0))
    live.message("step 200: done")
    live.close()
    assert all(len(piece) < 60 for piece in out.getvalue().replace("\n", "\r").split("\r"))
    assert "step 200/200" in out.getvalue() and "step 200: done\n" in out.getvalue()


def test_a_narrow_terminal_loses_whole_figures_and_never_half_a_number():
    live = LiveLine(200, io.StringIO())
    live.update(train_row(100) | {"val_loss": 1.5})
    whole = live.text().split("  ")
    for width in range(12, 90):
        assert len(live.text(width)) <= width and set(live.text(width).split("  ")) <= set(whole)
    assert live.text(40) == "step 100/200  loss 0.0500  ETA 10s"


def test_the_line_fits_the_terminal_it_is_on_when_the_output_goes_elsewhere(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.__stdout__", io.StringIO())
    main, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with open(end, "w") as stream:
        LiveLine(200, stream).update(train_row(100))
        shown = os.read(main, 1000).decode()
    os.close(main)
    assert shown.strip() == "step 100/200  loss 0.0500  ETA 10s"


def test_the_live_line_says_what_matters():
    live = LiveLine(200, io.StringIO())
    live.update(train_row(100) | {"val_loss": 1.5})
    assert live.text() == "step 100/200  loss 0.0500  val 1.5000  1.23k tok/s  31% of peak  256 MiB  ETA 10s"


def test_a_log_file_gets_few_lines():
    out = io.StringIO()
    live = LiveLine(1000, out)
    for step in range(1, 1001):
        live.update(train_row(step))
    assert 2 <= len(out.getvalue().splitlines()) <= 5 and "step 1000/1000" in out.getvalue()


def test_numbers_are_written_for_people():
    assert [count(v) for v in (0, 12, 999, 12345, 2.5e9, float("nan"))] == ["0", "12", "999", "12.3k", "2.5G", "nan"]
    assert [count(v) for v in (999.4, 999.6, 999_600, 12e14, 0.00012)] == ["999", "1k", "1M", "1200T", "0.00012"]
    assert [size(v) for v in (10, 2048, 850 * 2**20, 3 * 2**30)] == ["10 B", "2 KiB", "850 MiB", "3 GiB"]
    assert [size(v) for v in (1010 * 2**20, 1023.9 * 2**20)] == ["1010 MiB", "1 GiB"]
    assert [duration(v) for v in (0.5, 42, 80, 3725, 90000, float("inf"))] == ["0.5s", "42s", "1m 20s", "1h 02m", "1d 01h", "–"]


def test_thinning_keeps_ends_and_extremes():
    points = [(float(i), math.sin(i / 500)) for i in range(100_000)]
    points[77_777] = (77_777.0, 50.0)
    kept = thinned(points)
    assert len(kept) < 700 and (77_777.0, 50.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]
    assert kept == sorted(kept)


def test_ticks_are_round_and_inside():
    for low, high in ((0, 1), (3.2, 7.9), (-5, 12_345), (0.0011, 0.0019)):
        ticks = round_ticks(low, high)
        assert 2 <= len(ticks) <= 6 and all(low <= t <= high for t in ticks)


def test_a_chart_of_nothing_or_of_nan_says_so():
    assert "nothing recorded" in chart("Loss", [Line("loss", [])])
    assert "nothing recorded" in chart("Loss", [Line("loss", [(1, float("nan"))])])
    one = chart("Loss", [Line("loss", [(1, 2.0)])])
    assert "<circle" in one and "nan" not in one.lower()
    assert smoothed([(1, 1.0), (2, 3.0), (3, 5.0)])[1] == (2, 3.0)


def test_the_report_holds_everything_escaped_and_asks_nothing_of_the_network(tmp_path):
    page = write_report(make_run(tmp_path, 30)).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "penstock train &lt;x&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "") and "url(" not in page and "@import" not in page
    for words in ("Loss", "Throughput", "Samples", "after step 30", "muon_lr", "saved &lt;b&gt;it", "1m 15s", "finished"):
        assert words in page, words
    assert page.count('class="changed"') >= 5


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_ended_early_has_a_report_too(tmp_path, steps):
    make_run(tmp_path, steps)
    for name in ("summary.json", "config.toml") if steps else ("run.json", "summary.json"):
        (tmp_path / name).unlink()
    page = write_report(tmp_path).read_text()
    assert "</html>" in page and "Traceback" not in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1400])
def test_the_report_fits_the_window(tmp_path, width):
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed, so no browser looks at the report")
    page = write_report(make_run(tmp_path, 200))
    probe = "<script>document.title = 'overflow ' + (document.documentElement.scrollWidth - innerWidth)</script></body>"
    page.write_text(page.read_text().replace("</body>", probe))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    overflow = int(done.stdout.split("<title>overflow ")[1].split("<")[0])
    assert overflow <= 0, f"the page is {overflow} pixels wider than a window of {width}"
