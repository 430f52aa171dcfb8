"""What a run records and shows: rows that survive a crash, TensorBoard files, the live line."""

import fcntl
import io
import math
import os
import pty
import struct
import termios
import time
from pathlib import Path

import pytest

from penstock.config import UserError
from penstock.monitor import LiveLine, MetricStore, TensorBoardWriter
from penstock.monitor.units import count, duration, in_unit, size


def train_row(step, **more):
    return {"step": step, "tokens": step * 100, "loss": 5 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1234.5, "mfu": 0.31,
            "step_s": 0.1, "data_s": 0.001, "forward_backward_s": 0.08, "exchange_s": 0.0, "optimizer_s": 0.01, "memory_bytes": 1 << 28} | more  # fmt: skip


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
    assert [in_unit(*v) for v in ((5e8, "bytes"), (0.48123, "s"), (3.25, "1"), (1e-301, "1"))] == ["477 MiB", "0.4812 s", "3.25", "0"]
    assert [duration(v) for v in (0.5, 42, 80, 3725, 90000, float("inf"))] == ["0.5s", "42s", "1m 20s", "1h 02m", "1d 01h", "–"]
