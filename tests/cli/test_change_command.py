"""`penstock change`, as a user types it: a dry run, a change, questions, and what is refused."""

import pytest

from penstock.store import read_history


@pytest.mark.slow
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
