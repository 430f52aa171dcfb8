"""What a rank records: rows that say what was measured and what was not, within bounds; tokens, spans, host; and every metric is in the catalogue."""

import json
import math
import threading
import time

import numpy as np
import pytest
import torch

from penstock.data import Batch
from penstock.monitor.bus import HostGauge, Recorder, SpanRing, TokenWatch, aside, ask_for_spans, spans_file
from penstock.monitor.bus.aside import Aside
from penstock.monitor.bus.recorder import quantiles
from penstock.monitor.bus.tokens import NAMES, longest_run
from penstock.monitor.series import CATALOGUE
from penstock.monitor.series.kinds import UNKNOWN, Kinds
from penstock.monitor.series.table import ABSENT_BITS


class Kept:
    """A log in memory."""

    def __init__(self, takes=True):
        self.takes, self.rows, self.all = takes, [], []

    def names(self, names):
        self.all = names

    def append(self, step, time, row):
        self.rows.append((step, time, row.copy()))
        return self.takes

    def close(self):
        pass

    def of(self, row):
        values = self.rows[row][2]
        return {name: value for name, value in zip(self.all, values) if value.view(np.uint64) != ABSENT_BITS}


def test_a_row_has_what_was_measured_in_its_step_and_nothing_else():
    log = Kept()
    record = Recorder(log)
    record.put("loss/total", 2.0)
    record.put("loss/total", 1.5)
    record.put_all(record.columns(("a/x", "a/y")), [3.0, math.nan])
    record.count("fault/x")
    record.count("fault/x", 2)
    for value in range(1, 101):
        record.observe("wait/call", value)
    record.write(7, 1.25)
    record.put("a/x", 9.0)
    record.write(8, 2.5)
    assert [row[:2] for row in log.rows] == [(7, 1.25), (8, 2.5)]
    first = log.of(0)
    assert first["loss/total"] == 1.5 and first["fault/x"] == 3 and first["a/x"] == 3.0 and math.isnan(first["a/y"])
    assert [first[f"wait/call.{what}"] for what in ("count", "p50", "p95", "max")] == [100, 50, 95, 100]
    assert log.of(1) == {"a/x": 9.0}


def test_a_metric_keeps_its_column_however_many_come():
    log = Kept()
    record = Recorder(log)
    for step in range(3):
        for i in range(100 * (step + 1)):
            record.put(f"a/{i}", i + step)
        record.write(step, 0.0)
        assert log.all == [f"a/{i}" for i in range(100 * (step + 1))]
        assert log.rows[-1][2].tolist() == [i + step for i in range(100 * (step + 1))]


def test_what_has_no_room_is_dropped_and_counted():
    log = Kept(takes=False)
    record = Recorder(log, most_names=2)
    record.put_each({"a/0": 0.0, "a/1": 1.0, "a/2": 2.0})
    record.put_all(record.columns(("a/1", "a/3")), [5.0, 6.0])
    record.write(1, 0.0)
    assert log.of(0) == {"a/0": 0.0, "a/1": 5.0}
    assert record.dropped_values == 2 and record.dropped_rows == 1


def test_quantiles_of_few_values():
    assert quantiles([5.0]) == (1, 5, 5, 5) and quantiles([1.0, 3.0]) == (2, 1, 3, 3)


def batch(tokens, masked=0):
    tokens_bt = np.asarray(tokens, dtype=np.int64)
    targets_bt = tokens_bt.copy()
    targets_bt[:, :masked] = -100
    return Batch(tokens_bt, targets_bt, None)


def test_tokens_tell_repetition_noise_and_what_is_masked():
    draw, watch = np.random.default_rng(0), TokenWatch(vocab=64)
    zipf = 1 / np.arange(1, 65)
    text = [draw.choice(64, (4, 128), p=zipf / zipf.sum()) for _ in range(12)]
    looks = [dict(zip(NAMES, watch.look([batch(one)]))) for one in text]
    assert all(look["data/repeated"] == 0 and look["data/sequences"] == 4 and look["data/tokens_read"] == 512 for look in looks)
    assert looks[-1]["data/surprise"] == pytest.approx(looks[-1]["data/entropy"], rel=0.05)
    again = dict(zip(NAMES, watch.look([batch(np.stack([text[3][0], draw.integers(0, 64, 128)]))])))
    assert again["data/repeated"] == 0.5
    noise = dict(zip(NAMES, watch.look([batch(draw.integers(0, 64, (4, 128)), masked=32)])))
    assert noise["data/surprise"] > looks[-1]["data/surprise"] + 0.5 and noise["data/masked"] == 0.25
    dull = dict(zip(NAMES, watch.look([batch(np.full((2, 128), 5)), batch(text[0])])))
    assert dull["data/longest_run"] == 1.0 and dict(zip(NAMES, watch.look([batch(np.full((2, 8), 5))])))["data/entropy"] == pytest.approx(0)
    assert dull["data/documents"].view(np.uint64) == ABSENT_BITS


def test_of_the_sequences_read_only_the_last_are_remembered():
    watch, draw = TokenWatch(vocab=16, remembered=4), np.random.default_rng(1)
    rows = draw.integers(0, 16, (6, 32))
    at = NAMES.index("data/repeated")
    assert watch.look([batch(rows)])[at] == 0
    assert watch.look([batch(rows[:1])])[at] == 0 and watch.look([batch(rows[5:])])[at] == 1
    assert len(watch._seen) <= 4


def test_a_run_that_goes_on_is_not_surprised_anew():
    draw = np.random.default_rng(2)
    text = [batch(draw.choice(64, (4, 128), p=np.arange(1, 65) / 2080)) for _ in range(41)]
    went_on, resumed, anew = (TokenWatch(vocab=64) for _ in range(3))
    for one in text[:40]:
        went_on.look([one])
    resumed.know(text[20:40], 40)
    at = NAMES.index("data/surprise")
    there, here, new = (watch.look([text[40]])[at] for watch in (went_on, resumed, anew))
    assert here == pytest.approx(there, rel=0.01) and new > there + 0.05
    assert resumed.look([text[39]])[NAMES.index("data/repeated")] == 1


def test_the_longest_run_does_not_cross_sequences():
    assert longest_run(np.array([[1, 2, 3, 3], [3, 3, 4, 5]])) == 0.5


def test_spans_are_bounded_and_written_when_asked_for(tmp_path):
    ring = SpanRing(most=3)
    for i in range(5):
        ring.add(f"phase {i}", i, i + 0.5)
    ring.add_all("pipeline", [("0F0", 2.25, 2.5)])
    ring.write_if_asked(tmp_path, 2)
    assert not spans_file(tmp_path, 2).exists()
    time.sleep(0.02)
    ask_for_spans(tmp_path)
    ring.write_if_asked(tmp_path, 2)
    told = json.loads(spans_file(tmp_path, 2).read_text())
    assert told["rank"] == 2 and [name for name, _, _ in told["spans"]] == ["phase 2", "pipeline.0F0", "phase 3", "phase 4"]
    assert [seconds for _, _, seconds in told["spans"]] == [0.5, 0.25, 0.5, 0.5]
    spans_file(tmp_path, 2).unlink()
    ring.write_if_asked(tmp_path, 2)
    assert not spans_file(tmp_path, 2).exists(), "one request is answered once"


def test_work_aside_is_done_in_order_and_neither_waits_nor_ends_with_a_fault():
    done, held, begun = [], threading.Event(), threading.Event()
    aside = Aside(lambda: None, most_waiting=3)
    aside.do(lambda: (begun.set(), held.wait(10)))
    assert begun.wait(10)
    assert [aside.do(lambda i=i: done.append(i)) for i in range(5)] == [True, True, True, False, False]
    held.set()
    while len(done) < 3:
        time.sleep(0.001)
    aside.do(lambda: 1 / 0)
    aside.do(lambda: done.append("after"))
    aside.close()
    assert done == [0, 1, 2, "after"] and aside.failures == 1


def test_a_thread_aside_comes_by_itself_and_is_woken_where_much_waits(monkeypatch):
    came = threading.Event()
    thread = Aside(lambda: None)
    thread.do(came.set)
    assert came.wait(10), "nobody woke it"
    monkeypatch.setattr(aside, "ROUND_S", 60.0)
    time.sleep(0.2)
    came.clear()
    for _ in range(aside.HASTE - 1):
        thread.do(came.set)
    assert not came.wait(0.2)
    thread.do(came.set)
    assert came.wait(10)
    thread.do(came.clear)
    thread.close()
    assert not came.is_set(), "what waits at the end is done"


def test_the_host_is_read_and_its_figures_are_plausible(tmp_path):
    gauge = HostGauge(torch.device("cpu"), tmp_path, whole=True)
    gauge.read()
    busy_until = time.process_time() + 0.1  # a few of the kernel's ticks
    while time.process_time() < busy_until:
        pass
    figures = gauge.read()
    assert figures["memory/resident"] > 1e7 and 0 < figures["host/process_cpu"] < 64
    before, held = gauge.resident, np.ones(10_000_000)  # 80 MB
    assert before is None or gauge.resident - before == pytest.approx(held.nbytes, rel=0.1)
    assert 0 < figures["host/memory_available"] <= figures["host/memory_total"] and 0 <= figures["host/disk_used"] <= 1
    assert not [name for name in HostGauge(torch.device("cpu"), tmp_path, whole=False).read() if name.startswith("host/cpu")]
    kinds = Kinds(CATALOGUE)
    assert all(kinds.of(name) is not UNKNOWN and math.isfinite(value) for name, value in figures.items())


def test_the_catalogue_says_of_each_kind_what_it_means_and_what_is_bad():
    assert len({kind.pattern for kind in CATALOGUE}) == len(CATALOGUE)
    assert all(kind.meaning and kind.bad and "/" in kind.pattern for kind in CATALOGUE)
    kinds = Kinds(CATALOGUE)
    for kind in CATALOGUE:
        example = kind.pattern.replace("*", "x")
        assert kinds.of(example) is kind, f"{kind.pattern} is never found, as {kinds.of(example).pattern} comes before it"
    together = {"grad_norm/layer.03.ffn": "root", "grad_norm/total": "same", "bytes/row.ffn": "sum", "time/own": "spread", "activation_norm/layer.00": "root"}
    assert {name: kinds.of(name).together for name in together} == together
