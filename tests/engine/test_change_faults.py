"""A rank dies while the run changes: what was asked is done or not, whoever asked is told which, and the run ends as its history says it went."""

import os

import pytest
from small_runs import penstock
from test_elastic import Trains, until

from penstock.engine.story.replay import replay
from penstock.store import Run, list_snapshots, read_history

#: Where a rank is killed once: while the state is carried into the new parts, when the lead has written the config, or when a rank has committed.
FAULTS = """
import os, signal
from penstock.engine.requests import change
place, rank = os.environ["KILL"].split()

def strike(where):
    if (where, rank) == (place, os.environ.get("RANK")):
        try:
            os.close(os.open(os.environ["STRUCK"] + place, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

carry, save, commit = change.carry_state, change.save_config, change._commit

def carried(*arguments, **more):
    strike("carry")
    return carry(*arguments, **more)

def saved(*arguments):
    save(*arguments)
    strike("saved")

def committed(*arguments):
    commit(*arguments)
    strike("commit")

change.carry_state, change.save_config, change._commit = carried, saved, committed
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["carry 1", "saved 0"])
def test_a_death_in_a_change_leaves_a_run_that_is_what_its_history_says(tmp_path, kill):
    trains = Trains(tmp_path)
    planted = tmp_path / "plant" / "planted.py"
    planted.write_text(planted.read_text() + FAULTS)
    os.environ |= {"KILL": kill}
    try:
        process, run = trains.begin("changed", 2, train__steps=30, snapshot__every=3, snapshot__keep=0)
    finally:
        del os.environ["KILL"]
    until(lambda: list_snapshots(run))
    asked = penstock("change", run, "--set", "model.layers=3", "--wait", 60, check=False)
    trains.go_of("changed").touch()
    assert process.wait(timeout=200) == 0, process.communicate()
    events = read_history(run).events
    changed = [event for event in events if event.kind == "change" and event.data["who"] != "the run itself, as before"]
    config = Run(run).config()
    assert (config.model.layers == 3) == bool(changed) and len(changed) <= 1
    assert any(event.kind == "recovery" for event in events)
    assert asked.returncode == (0 if changed else 2), (asked.stdout, asked.stderr)
    first, last = list_snapshots(run)[0], list_snapshots(run)[-1]
    assert replay(first, last).equal, events
