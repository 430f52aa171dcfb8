"""`penstock alerts` and `penstock watch`: what people see of a run's alerts, running, crashed or finished, and what they say to them."""

import json
import os
import time

import pytest
from metric_runs import KINDS, Ranks
from small_runs import Command, penstock, refused, summary

from penstock.config import load_config
from penstock.monitor.alerts import Book, Desk, read_alerts
from penstock.monitor.detect import Finding, Moved
from penstock.monitor.overview import overview
from penstock.monitor.screen import frame, sparkline
from penstock.monitor.series.kinds import write_kinds
from penstock.store import append_event, create_run, writer_lock


@pytest.fixture
def run(tmp_path):
    """A run of two ranks that crashed after step 40, with two alerts."""
    run = create_run(load_config(None, ["train.steps=100"]), tmp_path / "run", {}).path
    write_kinds(run / "metrics", KINDS.all)
    Ranks(run / "metrics").steps(range(1, 41))
    desk = Desk(Book(run), lambda event, alert: None)
    for kind, rank, name, value in (("straggler", 1, "time/step", 2.0), ("loss_spike", None, "loss/total", 9.0)):
        moved = (Moved(name, 30, value, 1.0, 9.0, rank),)
        desk.take([Finding(kind, 33, 30, 0.9, rank, None, moved, f"{name} is {value} since step 30")], time.time())
    append_event(run, "failure", "rank 1 was killed by SIGKILL after step 40, in exchange", 40)
    return run


@pytest.mark.slow
def test_alerts_are_told_acknowledged_and_silenced(run):
    said = penstock("alerts", run).stdout
    for part in ("WARNING straggler (rank 1) since step 30, 90% sure, open [straggler-r1-s30]", "time/step of rank 1: 2 s, not 1 s", "cause ", "do "):
        assert part in said, said
    assert len(summary(penstock("alerts", run, "--json"))["alerts"]) == 2
    told = summary(penstock("alerts", run, "--ack", "straggler-r1-s30", "--silence", "plateau", "--json"))
    assert [alert["state"] for alert in told["alerts"]] == ["acknowledged", "open"] and told["silenced"] == ["plateau"]
    assert "straggler-r1-s30" in refused("alerts", run, "--ack", "straggler-r1-s31")
    assert "loss_spike" in refused("alerts", run, "--silence", "loss_spik")


def test_a_copy_that_cannot_be_written_is_read(run):
    os.chmod(run / "alerts.jsonl", 0o444)
    os.chmod(run, 0o555)
    try:
        assert "straggler" in penstock("alerts", run).stdout and "straggler" in penstock("watch", run, "--once").stdout
    finally:
        os.chmod(run, 0o755)


def test_a_run_without_alerts_says_how_far_it_was_watched(tmp_path):
    run = create_run(load_config(None, []), tmp_path / "run", {}).path
    assert "has no open alert; no monitor has watched it" in penstock("alerts", run).stdout
    (run / "metrics").mkdir(exist_ok=True)
    (run / "metrics" / "monitor.json").write_text(json.dumps({"step": 7, "time": 0.0}))
    assert "has no alert; watched to step 7" in penstock("alerts", run, "--all").stdout
    assert summary(penstock("alerts", run, "--json"))["watched_to"] == 7


@pytest.mark.slow
def test_follow_tells_what_comes_until_the_run_ends(run):
    def told():
        return [json.loads(line) for line in following.told()[0].splitlines()]

    def wait_for(count):
        end = time.monotonic() + 120
        while len(told()) < count:
            assert time.monotonic() < end and following.poll() is None, following.told()
            time.sleep(0.05)

    with writer_lock(run):
        following = Command("alerts", run, "--follow", "--json")
        wait_for(2)
        read_alerts(run).acknowledge("loss_spike-s30", "me")
        wait_for(3)
    assert following.wait() == 0
    found = [(alert["kind"], alert["state"]) for alert in told()]
    assert found[-1] == ("loss_spike", "acknowledged") and len(found) == 3


def test_a_frame_shows_how_a_crashed_run_stands_and_what_is_wrong(run):
    said = penstock("watch", run, "--once", COLUMNS="120", TERM="dumb").stdout
    for part in ("failed", "step 40/100 (40%)", "loss 9.0000", "2 ranks", "gradient norm", "highest 2 on rank 1", "straggler-r1-s30", "cause", "do"):
        assert part in said, said
    told = summary(penstock("watch", run, "--json"))
    assert told["health"] == "failed" and told["ranks"] == {"0": 40, "1": 40} and len(told["alerts"]) == 2
    assert told["metrics"]["time/step"]["high_rank"] == 1


def test_a_running_run_is_healthy_until_an_alert_is_open_and_names_ranks_that_lag(tmp_path):
    write_kinds(tmp_path / "metrics", KINDS.all)
    assert overview(tmp_path, "running", 100).health == "no steps yet"
    ranks = Ranks(tmp_path / "metrics").steps(range(1, 11))
    ranks.steps(range(11, 21), only=[0])
    now = overview(tmp_path, "running", 100)
    assert (now.health, now.reporting, now.ranks) == ("healthy", 1, {0: 20, 1: 10}) and now.eta_s == pytest.approx(80, rel=0.2)
    from rich.console import Console

    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(frame(now, 100))
    text = console.export_text()
    assert "rank 1 is at step 10" in text and "NOT WATCHED" in text
    Desk(Book(tmp_path), lambda event, alert: None).take([Finding("hang", 20, 21, 0.9, None, None, (), "no step")], time.time())
    assert overview(tmp_path, "running", 100).health == "1 open alert"


def test_sparklines_keep_spikes_and_mark_what_is_no_number():
    assert sparkline([0.0, 1.0, 2.0, 7.0], 10) == "▁▂▃█"
    assert sparkline([1.0, float("nan"), 1.0], 10) == "▁×▁"
    assert "█" in sparkline([0.0] * 500 + [9.0] + [0.0] * 500, 20) and len(sparkline(list(range(1000)), 20)) == 20
    assert sparkline([], 10) == ""
