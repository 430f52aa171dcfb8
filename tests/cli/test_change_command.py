"""`penstock change`, as a user types it: a dry run, a change, questions, and what is refused."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_runs import small_config

from penstock.comm import World
from penstock.engine.start import make_run
from penstock.engine.worker import run_rank
from penstock.store import current_writer, read_history


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


def test_a_run_is_changed_while_it_trains(run, here, refuses, answer):
    path, ended = run
    code, out, _ = here("change", path, "--set", "model.layers=3", "--dry-run")
    assert code == 0 and "would change" in out and "1 new layers copy" in out and "built anew" in out
    told = answer("change", path, "--set", "model.layers=3", "--set", "optim.lr=2e-3")
    assert told["settings"] == {"model.layers": [2, 3], "optim.lr": [0.001, 0.002]} and told["builds"] and told["parameters"][0] < told["parameters"][1]
    assert "give --yes" in refuses("change", path, "--set", "model.layers=2")
    assert "run.seed cannot change" in refuses("change", path, "--set", "run.seed=2")
    assert "did you mean 'optim.lr'?" in refuses("change", path, "--set", "optim.lrr=1")
    assert "--set SECTION.KEY=VALUE" in refuses("change", path)
    shrunk = answer("change", path, "--set", "model.layers=2", "--yes")
    assert "what layers" in shrunk["loses"][0] and shrunk["step"] > told["step"]
    assert answer("change", path, "--set", f"train.steps={shrunk['step'] + 60}")["builds"] is False
    assert ended.result(60)["state"] == "finished" and ended.result()["parameters"] == told["parameters"][0]
    assert "does not run (finished)" in refuses("change", path, "--set", "optim.lr=1e-3")
    events = [event for event in read_history(path).events if event.kind == "change"]
    assert [event.step for event in events][:2] == [told["step"], shrunk["step"]] and "who" in events[0].data
    assert "model.layers 2 → 3" in here("runs", "log", path)[1]
