"""Ailments that are planted in training: what they are written as; and what a run does by itself about them, with the monitor beside it."""

import os

import pytest
from small_runs import penstock, refused, small_sets, summary

from penstock.config import UserError
from penstock.lab.ailments import Patient, parse
from penstock.monitor.alerts import read_alerts
from penstock.monitor.service import STATUS
from penstock.store import find_run, read_history

ILL = {"PENSTOCK_LISTENER": "penstock.lab.ailments"}


#: Ailments, with a step at which training waits for its monitor, but not for ever.
WATCHED = """
import os, time
from penstock.lab import ailments

def hear(generation, step, phase):
    end = time.monotonic() + 120
    while step == 5 and phase == "data" and not os.path.exists(os.environ["AWAITED"]) and time.monotonic() < end:
        time.sleep(0.02)
    ailments.hear(generation, step, phase)
"""


def train(tmp_path, ailments, nproc=1, **changes):
    quick = {
        "metrics__monitor": "true", "survive__enabled": "on", "eval__every": 0, "eval__sample_tokens": 0, "metrics__tensorboard": "false", "snapshot__every": 20,
        "snapshot__keep": 0, "train__steps": 140, "batch__global": 16, "batch__micro": 16,
    }  # fmt: skip
    sets = small_sets(tmp_path, **quick | changes)
    (tmp_path / "watched.py").write_text(WATCHED)
    planted = {"PENSTOCK_LISTENER": "watched", "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    planted |= {"PENSTOCK_AILMENTS": ailments, "AWAITED": str(tmp_path / "run" / "metrics" / STATUS)}
    done = penstock("train", *sets, "--nproc", nproc, "--run-dir", tmp_path / "run", "--json", **planted)
    return summary(done), find_run(str(tmp_path / "run")), done.stderr


@pytest.mark.slow
def test_what_is_no_ailment_is_said_in_a_sentence(tmp_path):
    for bad in ("slow:1", "slow:1:20", "sloow:1:20:1", "poison:x:20", "nan:0:3:1:2"):
        with pytest.raises(UserError, match="PENSTOCK_AILMENTS"):
            parse(bad)
    sets = small_sets(tmp_path, survive__enabled="on")
    said = refused("train", *sets, "--run-dir", tmp_path / "run", PENSTOCK_AILMENTS="poison:x:20", **ILL)
    assert "'poison:x:20' is not KIND:RANK:STEP" in said


def test_an_ailment_of_one_step_comes_once(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    patient = Patient(parse("nan:1:5 rate:*:5:0.5 spike:0:5:9"))
    seen = []
    for step in (3, 4, 5, 2, 4):
        patient.hear(0, step, "data")
        seen.append((patient.has("nan") is not None, patient.has("rate"), patient.has("spike")))
    assert seen == [(False, None, None), (True, 0.5, None), (False, 0.5, None), (False, None, None), (False, 0.5, None)]


@pytest.mark.slow
def test_a_nan_is_left_out_and_told_with_what_was_done(tmp_path):
    result, run, _ = train(tmp_path, "nan:0:40", alerts__act="non_finite=skip", train__steps=60)
    assert result["step"] == 60 and run.config().data.skip == "624-639"
    [alert] = [alert for alert in read_alerts(run.path).alerts.values() if alert.kind == "non_finite"]
    assert (alert.state, alert.step, alert.level) == ("resolved", 40, "critical") and "its batch was left out" in alert.notes[-1]


@pytest.mark.slow
def test_a_damaged_batch_sends_the_run_back_and_the_alert_says_so(tmp_path):
    result, run, said = train(tmp_path, "poison:0:75", 2, layout__shard=2, batch__micro=8, alerts__act="data_corruption=roll_back")
    assert result["step"] == 140, said
    [event] = [event for event in read_history(run.folder).events if event.data.get("rolled_back")]
    way = event.data["rolled_back"]
    assert (way["to"], way["since"]) == (60, 75) and way["here"] >= 75 and f"samples {74 * 16} to " in event.text
    [alert] = [alert for alert in read_alerts(run.path).alerts.values() if alert.kind == "data_corruption"]
    assert alert.state == "resolved" and any("roll_back" in note and "back from step" in note for note in alert.notes)
