"""The story's commands, through the command line: what they print, and with which exit code they end."""

import json
import sys

import pytest
from small_runs import small_sets

from penstock.cli import main


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process; its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        capsys.readouterr()
        code = main()
        return code, capsys.readouterr()

    return run


@pytest.mark.slow
def test_a_run_is_forked_compared_replayed_exported_and_made_again(call, tmp_path):
    base, fork, again = (tmp_path / name for name in ("base", "fork", "again"))
    assert call("train", *small_sets(tmp_path, train__steps=4, snapshot__keep=0, eval__every=0), "--run-dir", base)[0] == 0
    code, told = call("runs", "fork", f"{base}@2", "--set", "optim.lr=0.01", "--set", "train.steps=3", "--run-dir", fork, "--json")
    made = json.loads(told.out)
    assert code == 0 and made["step"] == 2 and made["settings"]["optim.lr"][1] == 0.01
    assert call("resume", fork)[0] == 0
    code, told = call("runs", "diff", base, fork, "--weights", "--code")
    assert code == 0 and "both go on from step 2" in told.out and "optim.lr" in told.out
    both = json.loads(call("runs", "diff", f"{base}@2", f"{fork}@2", "--json")[1].out)
    assert both["same_state"] and both["config"] == {} and both["before"]["id"] == both["after"]["id"]
    code, told = call("replay", base, "--from", 2, "--json")
    assert code == 0 and json.loads(told.out)["equal"] and json.loads(told.out)["to"]["step"] == 4
    code, told = call("replay", base, "--from", 4, "--to", 2)
    assert code == 2 and "does not go on from step 4" in told.err and told.out == ""
    code, told = call("runs", "samples", fork, "--step", 3)
    assert code == 0 and "sample 8, epoch 0" in told.out and ".txt  bytes" in told.out
    code, told = call("runs", "export", fork, tmp_path / "out", "--format", "safetensors")
    assert code == 0 and "safetensors.torch.load_file" in told.out
    code, told = call("runs", "import", tmp_path / "out", "--run-dir", again)
    assert code == 0 and f"penstock resume {again} --set train.steps=" in told.out
    assert json.loads(call("runs", "diff", fork, again, "--json")[1].out)["same_state"]
    code, told = call("runs", "fork", base, "--set", "model.dim=48", "--run-dir", tmp_path / "no")
    assert code == 2 and "--partial" in told.err and "blocks.0" in told.err and "model.dim" in told.err and not (tmp_path / "no").exists()
    code, told = call("runs", "fork", base, "--set", "model.layers=3", "--run-dir", tmp_path / "deeper")
    assert code == 0 and "grown: 1 new" in told.out
    assert call("runs", "import", tmp_path / "corpus")[0] == 2 and call("runs", "export", fork, tmp_path / "x", "--format", "pickle")[0] == 2
    for run in (base, fork, again):
        assert call("runs", "verify", run)[0] == 0 and call("runs", "log", run)[0] == 0
