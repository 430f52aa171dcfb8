"""A run's ranks come and go: what one rank alone had is taken up from its peer's memory, more or fewer ranks go on, and the supervisor may be lost."""

import json
import os
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from small_runs import Command, penstock, small_config, small_sets, summary
from test_survive import FAULTS

from penstock.cli.app import main
from penstock.comm import World
from penstock.config import UserError, with_values
from penstock.engine import outline
from penstock.engine.record.monitoring import act
from penstock.engine.survive import exclude_rank, parting
from penstock.engine.survive.fewer import config_for
from penstock.engine.survive.parting import _check_memory
from penstock.monitor import MetricStore
from penstock.store import Run, current_writer, list_snapshots, read_history, run_state

STEPS = 20
#: Steps take a third of a second until a file of the run's is there.
SLOWLY = """
import time
if "GO" in os.environ:
    from penstock.engine import step
    undisturbed = step.gradients
    def slowly(parts, at):
        if not os.path.exists(os.environ["GO"]):
            time.sleep(0.3)
        return undisturbed(parts, at)
    step.gradients = slowly
"""


class Trains:
    """Runs without snapshots before their end, with faults or slow steps planted."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "plant").mkdir()
        (folder / "plant" / "planted.py").write_text(FAULTS + SLOWLY)

    def sets(self, **changes):
        small = {"train__steps": STEPS, "batch__global": 12, "snapshot__every": 0, "eval__every": 0, "metrics__tensorboard": "false"}
        return small_sets(self.folder, **small | {"survive__enabled": "on", "precision__compute": "float64"} | changes)

    def environment(self, name, faults=()):
        path = os.pathsep.join([str(self.folder / "plant"), os.environ.get("PYTHONPATH", "")])
        return {"PYTHONPATH": path, "PENSTOCK_LISTENER": "planted", "FAULTS": json.dumps(faults), "STRUCK": str(self.folder / f"{name}-struck-")}

    def whole(self, name, nproc, faults=(), **changes):
        run = self.folder / name
        done = penstock("train", *self.sets(**changes), "--nproc", nproc, "--run-dir", run, "--json", timeout_s=240, **self.environment(name, faults))
        return summary(done), run

    def begin(self, name, nproc, **changes):
        """A run that has begun, with slow steps until it is told to `go`."""
        process = Command(
            "train", *self.sets(**changes), "--nproc", nproc, "--run-dir", self.folder / name, "--json", **self.environment(name), GO=str(self.go_of(name))
        )
        until(lambda: current_writer(self.folder / name) and MetricStore(self.folder / name / "metrics").last("train"))
        return process, self.folder / name

    def go_of(self, name):
        """The file that ends a run's slow steps."""
        return self.folder / f"{name}-go"


def until(there, seconds=240):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def trains(tmp_path_factory):
    return Trains(tmp_path_factory.mktemp("elastic"))


@pytest.fixture(scope="module")
def whole(trains):
    """The undisturbed run on two shards."""
    return trains.whole("whole", 2, layout__shard=2)[0]


@pytest.mark.slow
def test_a_lost_shard_comes_from_its_peers_memory(trains, whole):
    faults = [["forward", 1, 8, "SIGKILL"], ["update", 0, 14, "SIGKILL"]]
    result, run = trains.whole("lost", 2, faults, layout__shard=2, survive__copies=3)
    assert result["weights_digest"] == whole["weights_digest"] and result["step"] == STEPS
    assert [entry["step"] for entry in result["recoveries"]] == [6, 12], "both went back to the copied step, and none to the beginning"
    told = [event.text for event in read_history(run).events if event.kind == "recovery"]
    assert len(told) == 2 and all("from the state in memory" in text for text in told)


@pytest.mark.slow
def test_when_the_supervisor_dies_the_ranks_save_and_the_run_goes_on_from_there(trains, whole):
    process, run = trains.begin("orphaned", 2, layout__shard=2)
    process.kill()
    process.wait()
    until(lambda: not current_writer(run))
    (saved,) = list_snapshots(run)
    assert 0 < saved.step < STEPS and "supervisor" in read_history(run).events[-1].text
    result = summary(penstock("resume", run, "--nproc", 2, "--json"))
    assert result["weights_digest"] == whole["weights_digest"] and result["step"] == STEPS


@pytest.mark.slow
def test_when_the_process_that_forks_ranks_dies_they_save_and_others_go_on_by_themselves(trains, whole):
    process, _ = trains.begin("unforked", 2, layout__shard=2)
    (template,) = psutil.Process(process.pid).children()
    template.kill()
    result = json.loads(process.communicate(timeout=240)[0])
    assert result["weights_digest"] == whole["weights_digest"] and result["step"] == STEPS
    (recovery,) = result["recoveries"]
    assert 0 < recovery["step"] < STEPS, "from where they saved, not from the beginning"


def scaled(capsys, monkeypatch, run, ranks):
    """`penstock scale`: its exit code, and what it said."""
    monkeypatch.setattr(sys, "argv", ["penstock", "scale", str(run), "--ranks", str(ranks), "--json"])
    code = main()
    said = capsys.readouterr()
    return code, json.loads(said.out) if code == 0 else said.err


@pytest.mark.slow
def test_ranks_go_and_come_between_steps_and_none_is_lost(trains, capsys, monkeypatch):
    many = {"train__steps": 60, "layout__shard": 2}
    process, run = trains.begin("scaled", 2, **many)
    code, said = scaled(capsys, monkeypatch, run, 7)
    assert code == 2 and said.count("\n") == 1 and "batch.global" in said
    code, fewer = scaled(capsys, monkeypatch, run, 1)
    assert code == 0 and (fewer["before"], fewer["ranks"]) == (2, 1)
    code, more = scaled(capsys, monkeypatch, run, 2)
    assert code == 0 and (more["before"], more["ranks"]) == (1, 2) and fewer["step"] < more["step"] < 60
    trains.go_of("scaled").touch()
    result = json.loads(process.communicate(timeout=240)[0])
    assert process.returncode == 0 and result["step"] == 60 and result["recoveries"] == []
    alone, _ = trains.whole("alone", 1, train__steps=60, survive__enabled="off")
    assert result["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-9)
    events = [(event.kind, event.step) for event in read_history(run).events if event.data.get("command") == "scale"]
    assert events == [("note", events[0][1]), ("change", fewer["step"]), ("change", more["step"])]
    assert run_state(Run(run)) == "finished"
    code, said = scaled(capsys, monkeypatch, run, 2)
    assert code == 2 and "does not run" in said


@pytest.mark.slow
def test_a_run_goes_on_without_a_rank_that_was_named_also_the_first(trains):
    process, run = trains.begin("without", 3, train__steps=40)
    with pytest.raises(UserError, match="cannot go on without rank 3"):
        exclude_rank(Run(run), 3, 60.0, "for alert straggler-r3-s5")
    said = exclude_rank(Run(run), 0, 120.0, "for alert straggler-r0-s5")
    assert (said["before"], said["ranks"]) == (3, 2) and "for alert straggler-r0-s5" in said["text"]
    trains.go_of("without").touch()
    result = json.loads(process.communicate(timeout=240)[0])
    assert process.returncode == 0 and result["step"] == 40 and result["recoveries"] == []
    alone, _ = trains.whole("alone_without", 1, train__steps=40, survive__enabled="off")
    assert result["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-9)


@pytest.mark.slow
def test_a_second_rank_leaves_later_on_also_by_the_number_that_it_had_before_the_first_left(trains):
    process, run = trains.begin("without_two", 3, train__steps=40)
    found = time.time()
    orders = [{"act": "exclude", "id": f"straggler-r{rank}-s5", "kind": "straggler", "since": 5, "rank": rank, "time": found, "what": ""} for rank in (0, 2)]
    first, second = (act(Run(run), order).text for order in orders)
    assert "3 ranks became 2 ranks" in first and "2 ranks became 1 rank" in second and "for alert straggler-r2-s5" in second
    assert [event.data["left"] for event in read_history(run).events if event.data.get("left")] == [[0], [1]]
    with pytest.raises(UserError, match="rank 2 has left the run already"):
        act(Run(run), orders[1])
    with pytest.raises(UserError, match="cannot go on without rank 0"):
        act(Run(run), orders[0] | {"time": time.time() + 60})
    trains.go_of("without_two").touch()
    result = json.loads(process.communicate(timeout=240)[0])
    assert process.returncode == 0 and result["step"] == 40 and result["recoveries"] == []
    alone, _ = trains.whole("alone_of_three", 1, train__steps=40, survive__enabled="off")
    assert result["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-9)


def test_another_number_of_ranks_changes_replicas_and_else_shards(tmp_path):
    config = small_config(tmp_path)

    def layout(ranks, **settings):
        section = config_for(with_values(config, {f"layout.{name}": value for name, value in settings.items()}), ranks).layout
        return section.replicate, section.shard

    assert layout(3, replicate=4) == (0, 1) and layout(4, replicate=4) == (4, 1)
    assert layout(8, shard=4) == (0, 4) and layout(3, shard=4) == (0, 3) and layout(6, shard=4) == (0, 6)
    assert layout(6, shard=4, tensor=2) == (0, 3) and layout(5, shard=2, tensor=2) == (0, 2), "what has no place is left for the check to refuse"


def test_ranks_for_which_there_is_no_memory_are_refused(tmp_path, monkeypatch):
    config = outline(small_config(tmp_path))
    parts = SimpleNamespace(config=config, world=World(), tensors=dict)
    monkeypatch.setattr(parting, "memory_bytes", lambda device: 500 << 20)
    _check_memory(parts, 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=200 << 20))
    with pytest.raises(UserError, match=r"there is no memory for 4 ranks: each needs about .* choose another number"):
        _check_memory(parts, 4)
    _check_memory(parts, 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 << 29))
    large = outline(with_values(small_config(tmp_path), {"model.dim": 1024, "model.layers": 4, "layout.shard": 2}))
    parts.config = large
    _check_memory(parts, 2)
    parts.config = with_values(large, {"survive.enabled": "on", "survive.copies": 1})
    with pytest.raises(UserError, match="no memory"):
        _check_memory(parts, 2)


def test_only_a_run_with_a_supervisor_can_be_asked(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "run.json").write_text("{}")
    code, said = scaled(capsys, monkeypatch, tmp_path, 2)
    assert code == 2 and "survive.enabled" in said and said.count("\n") == 1
