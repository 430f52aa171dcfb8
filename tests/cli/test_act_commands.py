"""`penstock snapshot` and `penstock stop`, as a user types them or the page does: a run that trains, and one that does not."""

import pytest

from penstock.store import list_snapshots, read_history


@pytest.mark.slow
def test_a_run_saves_and_stops_when_it_is_asked_to(run, here, refuses, answer):
    path, ended = run
    saved = answer("snapshot", path)
    assert saved["text"] == f"saves the state of step {saved['step']}"
    stopped = answer("stop", path)
    result = ended.result(60)
    assert result["state"] == "interrupted" and result["step"] == stopped["step"] + 1
    assert [snapshot.step for snapshot in list_snapshots(path)] == [saved["step"], result["step"]]
    assert [event.data["command"] for event in read_history(path).events if event.kind == "note"] == ["snapshot", "stop"]
    for command in ("snapshot", "stop"):
        assert "does not run (interrupted)" in refuses(command, path)
        assert "no run 'nobody'" in refuses(command, "nobody")
