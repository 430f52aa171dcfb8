"""The monitor beside a run: what it finds and tells; killed, stopped, alone; what it does by policy; and that training does not notice it."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from metric_runs import KINDS, Ranks
from ranks import run_ranks
from small_runs import penstock, small_config, small_sets, summary

from penstock.config import UserError, load_config
from penstock.engine.build import Core
from penstock.engine.record.monitoring import MonitorKeeper, act, monitored
from penstock.engine.starting.start import make_run, start_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.step import NonFinite
from penstock.monitor.alerts import read_alerts
from penstock.monitor.detect import Finding, Moved, Watch
from penstock.monitor.detect.hang import AT_FIRST
from penstock.monitor.series import Bound, Names, Series, StepTable
from penstock.monitor.series.kinds import write_kinds
from penstock.monitor.service import STATUS, Service, pause_after
from penstock.monitor.sinks import Sinks
from penstock.store import Run, append_event, create_run, current_writer, read_history


class FindsAt:
    """Finds a straggler at one step."""

    def __init__(self, step):
        self.step, self.seen = step, []

    def update(self, table, generation):
        self.seen.append(table.step)
        moved = (Moved("time/step", table.step, 2.0, 1.0, 9.0, 1),)
        return [Finding("straggler", table.step, table.step, 0.9, 1, None, moved, "slow")] if table.step == self.step else []

    def silence(self, now):
        return []


class Told(Sinks):
    """Remembers what it was told."""

    def __init__(self):
        super().__init__([])
        self.told = []

    def put(self, message):
        self.told.append((message.event, message.alert.kind, message.alert.step))


@pytest.fixture
def folder(tmp_path):
    write_kinds(tmp_path / "metrics", KINDS.all)
    return tmp_path


def service(folder, detectors, **settings):
    config = load_config(None, [f"{name.replace('__', '.')}={value}" for name, value in settings.items()])
    return Service(folder, config, detectors, Told())


def until(so, seconds=240.0):
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.02)


def status(run):
    try:
        return json.loads((run / "metrics" / STATUS).read_text())
    except (OSError, ValueError):
        return {}


def test_rows_become_steps_alerts_and_a_store_and_one_that_starts_again_tells_nothing_twice(folder, capsys):
    ranks = Ranks(folder / "metrics").steps(range(1, 8))
    first = service(folder, FindsAt(5), alerts__act="straggler=snapshot")
    while first.turn():
        pass
    assert first._sinks.told == [("opened", "straggler", 5)]
    order = json.loads(capsys.readouterr().out)
    assert (order["act"], order["id"]) == ("snapshot", "straggler-r1-s5")
    first._note(time.time())
    first.keeper.close()  # killed: nothing is stored
    ranks.steps(range(8, 11))
    again = FindsAt(5)
    second = service(folder, again)
    second.close()
    assert again.seen == list(range(1, 11)) and second._sinks.told == []
    assert len(read_alerts(folder).alerts) == 1
    series = Series(folder / "metrics", KINDS)
    [course] = series.courses(["loss/total"], Bound(step=9))
    assert course.steps.tolist() == [9, 10] and list((folder / "metrics" / "store").iterdir())


def test_a_monitor_that_is_started_again_knows_the_run_from_rows_that_are_stored(folder):
    Ranks(folder / "metrics").steps(range(1, 40))
    first = service(folder, Watch())
    while first.turn():
        pass
    assert first._detectors.hang.patience < AT_FIRST
    first.keeper.store()
    first._note(time.time())
    first.keeper.close()
    second = service(folder, Watch())
    assert second._detectors.hang.patience == pytest.approx(first._detectors.hang.patience)
    second.turn()
    assert second._sinks.told == [] and second.keeper.through == (1, 39)
    second.close()


def test_a_second_monitor_is_refused(folder):
    first = service(folder, FindsAt(5))
    with pytest.raises(UserError, match="another process keeps"):
        service(folder, FindsAt(5))
    first.close()


def test_a_disk_that_takes_nothing_ends_neither_the_monitor_nor_its_telling(folder, monkeypatch):
    Ranks(folder / "metrics").steps(range(1, 8))
    full = service(folder, FindsAt(5))

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.monitor.alerts.book.append", refuse)
    monkeypatch.setattr(full.keeper, "store", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    full.close()
    assert full._sinks.told == [("opened", "straggler", 5)]


def test_pauses_that_are_due_are_no_hangs():
    config = load_config(None, ["eval.every=10", "snapshot.every=0", "train.steps=100"])
    tables = {step: StepTable(step, 1.0, Names(["snapshot/last"]), (0,), np.array([[float(step == 13)]])) for step in (10, 11, 13, 100)}
    pauses = {step: pause_after(table, config) for step, table in tables.items()}
    assert pauses[10] > 0 and pauses[100] > 100 and pauses[13] > 100 and pauses[11] == 0


def test_the_time_between_two_starts_and_a_command_that_is_carried_out_are_no_hangs(folder, monkeypatch):
    Ranks(folder / "metrics").steps(range(1, 40))
    first = service(folder, FindsAt(99))
    first.close()
    clock = [time.time()]
    monkeypatch.setattr("penstock.monitor.service.time.time", lambda: clock[0])
    second = service(folder, Watch())  # the rows are of long ago
    second.turn()
    clock[0] += 50.0
    second.turn()
    (folder / "commands").mkdir()
    (folder / "commands" / "1-change.taken").touch()
    clock[0] += 11.0
    second.turn()
    assert second._sinks.told == []
    (folder / "commands" / "1-change.taken").unlink()
    clock[0] += 60.0
    second.turn()
    assert [told[:2] for told in second._sinks.told] == [("opened", "hang")]
    second.close()


def process(folder):
    words = [sys.executable, "-m", "penstock.monitor.service", str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_the_process_imports_no_torch_and_tells_when_the_training_is_gone(folder):
    config = load_config(None, ["train.steps=100"])
    create_run(config, folder / "run", {})
    write_kinds(folder / "run" / "metrics", KINDS.all)
    Ranks(folder / "run" / "metrics").steps(range(1, 4))
    code = "import sys, penstock.monitor.service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    gone = process(folder / "run")
    assert json.loads(gone.stdout.readline()) == {"ready": True}
    said = gone.communicate(timeout=120)[1]  # closes its stdin without a word, as a killed process does
    assert gone.returncode == 0 and "CRITICAL run_lost since step 3" in said
    ended = process(folder / "run")
    ended.communicate("end\n", timeout=120)
    assert [alert.kind for alert in read_alerts(folder / "run").alerts.values()] == ["run_lost"]


@contextmanager
def running(tmp_path, **changes):
    """A run on one rank in a process of its own, with whatever monitor its settings give it."""
    many = {"train__steps": 100000, "snapshot__every": 0, "eval__every": 0, "metrics__tensorboard": "false", "metrics__monitor": "true"}
    run = make_run(small_config(tmp_path, **many | changes), "test", "test", tmp_path / "run", None)
    with ThreadPoolExecutor(1) as pool:
        ends = pool.submit(run_ranks, kept, 1, run.path)
        until(lambda: current_writer(run.path) is not None)
        yield run, ends


def kept(world, folder):
    """One rank of a run, with its monitor, as the command starts it."""
    with monitored(Run(folder)):
        return run_rank(Run(folder), world)["state"]


@pytest.mark.slow
def test_a_killed_monitor_is_started_again_a_stopped_one_holds_up_nothing_and_policies_act(tmp_path):
    with running(tmp_path) as (run, ends):
        until(lambda: status(run.path).get("step", 0) > 3)
        first = status(run.path)["pid"]
        assert os.getpriority(os.PRIO_PROCESS, first) == 10
        os.kill(first, signal.SIGKILL)
        until(lambda: status(run.path).get("pid") not in (None, first))
        second, rate = status(run.path)["pid"], run.config().optim.lr
        os.kill(second, signal.SIGSTOP)
        orders = [{"act": name, "id": f"loss_spike-s{i}", "kind": "loss_spike", "since": 3, "what": ""} for i, name in enumerate(("snapshot", "lower_rate"))]
        assert [act(run, order).state for order in orders] == ["done", "done"]
        assert run.config().optim.lr == rate / 2
        began = time.monotonic()
        assert act(run, orders[0] | {"act": "stop"}).state == "done"
        assert ends.result(240)[0] == "interrupted" and time.monotonic() - began < 20
        assert not Path(f"/proc/{second}").exists()
    texts = [event.text for event in read_history(run.folder).events]
    assert any("saves the state" in text and "loss_spike-s0" in text for text in texts) and any("stops after step" in text for text in texts)


def test_an_order_that_helps_no_more_is_not_repeated_for_ever(tmp_path, monkeypatch):
    run = create_run(load_config(None, ["train.steps=100"]), tmp_path / "run", {})
    monkeypatch.setattr(MonitorKeeper, "_keep", lambda self: None)
    asked, most = [], run.config().alerts.most
    monkeypatch.setattr("penstock.engine.record.monitoring.act", lambda run, order: asked.append(order) or (_ for _ in ()).throw(UserError("no such run")))
    keeper = MonitorKeeper(run)
    for number in range(most + 2):
        keeper._act({"act": "snapshot", "id": f"a{number}", "kind": "loss_spike", "since": 1, "what": "spike"})
    keeper.close()
    texts = [event.text for event in read_history(run.folder).events if event.kind == "note"]
    assert len(asked) == most and "no such run" in texts[0] and "times" in texts[-1]


def test_a_rank_that_an_alert_names_is_known_by_the_number_that_it_has_when_it_is_to_leave(tmp_path, monkeypatch):
    run = create_run(load_config(None, ["train.steps=100"]), tmp_path / "run", {})
    gone = []
    monkeypatch.setattr("penstock.engine.record.monitoring.exclude_rank", lambda run, rank, wait_s, why: gone.append(rank) or {"text": why})

    def exclude(rank, at):
        return act(run, {"act": "exclude", "id": f"straggler-r{rank}", "kind": "straggler", "since": 3, "rank": rank, "time": at, "what": ""})

    append_event(run.path, "change", "4 ranks became 3 ranks", 20, command="scale", left=[1], parted=100.0)
    append_event(run.path, "change", "3 ranks became 2 ranks", 20, command="scale", left=[0], parted=200.0)
    for rank, at in ((3, 99.0), (2, 150.0), (0, 201.0)):
        exclude(rank, at)
    assert gone == [1, 1, 0]
    for rank, at in ((1, 99.0), (0, 150.0)):
        with pytest.raises(UserError, match=rf"rank {rank} has left the run already: . ranks became"):
            exclude(rank, at)
    append_event(run.path, "recovery", "rank 1 was killed", 30, parted=300.0)
    with pytest.raises(UserError, match="ranks were lost since the alert"):
        exclude(1, 250.0)
    assert exclude(1, 301.0).state == "done" and len(gone) == 4


def poisoned(world, folder):
    """One rank whose loss is NaN in its twentieth micro-batch; returns what it says."""
    calls, real = [], Core.loss

    def loss(self, batch):
        calls.append(1)
        return real(self, batch) * (float("nan") if len(calls) == 20 else 1.0)

    Core.loss = loss
    try:
        kept(world, folder)
    except NonFinite as error:
        return str(error)


@pytest.mark.slow
def test_a_nan_is_told_before_the_failed_run_is_left(tmp_path):
    run = make_run(small_config(tmp_path, metrics__monitor="true", train__steps=100), "test", "test", tmp_path / "run", None)
    [said] = run_ranks(poisoned, 1, run.path)
    assert said.startswith("step 7: loss nan")
    [alert] = read_alerts(run.path).alerts.values()
    assert (alert.kind, alert.state, alert.step) == ("non_finite", "open", 8)


#: A step that waits for a file, but not for ever.
WAITING = """
import os, time
def hear(generation, step, phase):
    end = time.monotonic() + 120
    while step == 20 and phase == "data" and not os.path.exists(os.environ["AWAITED"]) and time.monotonic() < end:
        time.sleep(0.02)
"""


@pytest.mark.slow
def test_training_is_bit_for_bit_the_same_with_a_monitor(tmp_path):
    runs = {}
    (tmp_path / "waits.py").write_text(WAITING)
    for name, awaited in (("true", tmp_path / "true" / "metrics" / STATUS), ("false", tmp_path)):
        sets = small_sets(tmp_path, metrics__monitor=name, train__steps=40, eval__every=0, snapshot__every=0, survive__enabled="on")
        planted = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]), "PENSTOCK_LISTENER": "waits", "AWAITED": str(awaited)}
        runs[name] = summary(penstock("train", *sets, "--run-dir", tmp_path / name, "--json", **planted))["weights_digest"]
    assert runs["true"] == runs["false"]
    assert status(tmp_path / "true") and not status(tmp_path / "false")


def test_a_policy_that_cannot_be_is_refused_before_there_is_a_run(tmp_path):
    with pytest.raises(UserError, match="no step comes"):
        start_run(small_config(tmp_path, alerts__act="hang=stop", metrics__monitor="true"), "test", "test", 1, tmp_path / "run", None)
    assert not (tmp_path / "run").exists()
