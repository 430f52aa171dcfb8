"""`penstock snapshot` and `penstock stop`, as a user types them or the page does: a run that trains, and one that does not."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_runs import small_config

from penstock.comm import World
from penstock.engine.start import make_run
from penstock.engine.worker import run_rank
from penstock.store import current_writer, list_snapshots, read_history


@pytest.fixture
def run(tmp_path):
    """A run that trains in this process until it is asked to end."""
    config = small_config(tmp_path, train__steps=100_000, eval__every=0, eval__sample_tokens=0, snapshot__every=0, metrics__tensorboard="false")
    made = make_run(config, "test", "test", tmp_path / "run", None)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(run_rank, made, World())
        while current_writer(made.path) is None and not ended.done():
            time.sleep(0.01)
        yield made.path, ended
        assert ended.done()


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
