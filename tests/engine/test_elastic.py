"""A run's ranks come and go: what one rank alone had is taken up from its peer's memory, and more or fewer ranks go on without a step being lost."""

import json
import os

import pytest
from small_runs import penstock, small_sets, summary
from test_survive import FAULTS

from penstock.store import read_history

STEPS = 20


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A function that trains a run without snapshots before its end; it returns the summary, and the run's folder."""
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "plant").mkdir()
    (folder / "plant" / "sitecustomize.py").write_text(FAULTS)

    def run(name, nproc, faults=(), **changes):
        small = {"train__steps": STEPS, "batch__global": 12, "snapshot__every": 0, "eval__every": 0, "metrics__tensorboard": "false", "survive__enabled": "on"}
        path = os.pathsep.join([str(folder / "plant"), os.environ.get("PYTHONPATH", "")])
        done = penstock(
            "train", *small_sets(folder, **small | changes), "--nproc", nproc, "--run-dir", folder / name, "--json", timeout_s=120, PYTHONPATH=path,
            FAULTS=json.dumps(faults), STRUCK=str(folder / f"{name}-struck-"),
        )  # fmt: skip
        return summary(done), folder / name

    return run


@pytest.mark.slow
def test_a_lost_shard_comes_from_its_peers_memory(train):
    sharded = {"layout__shard": 2, "survive__copies": 3}
    whole, _ = train("whole", 2, **sharded)
    result, run = train("lost", 2, [["forward", 1, 8, "SIGKILL"], ["update", 0, 14, "SIGKILL"]], **sharded)
    assert result["weights_digest"] == whole["weights_digest"] and result["step"] == STEPS
    assert [entry["step"] for entry in result["recoveries"]] == [6, 12], "both went back to the copied step, and none to the beginning"
    told = [event.text for event in read_history(run).events if event.kind == "recovery"]
    assert len(told) == 2 and all("from the state in memory" in text for text in told)
