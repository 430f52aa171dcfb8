"""A run outlives its ranks: whoever is killed or stopped, wherever, the weights are those of the undisturbed run, and nothing waits for ever."""

import json
import os
import time

import pytest
from small_runs import penstock, small_sets, summary

from penstock.engine.guard.heart import PLACE, Beat, Heart, opened, read_beat
from penstock.engine.survive.hangs import StepWatch, waits
from penstock.monitor import MetricStore
from penstock.monitor.series.rows import rank_folders
from penstock.monitor.series.tail import RowTail
from penstock.store import read_history

STEPS = 30
#: Kills or stops this process once, at a place and step that the test names, in the rank that it names.
FAULTS = """
import json, os, signal
orders = json.loads(os.environ["FAULTS"])
def hear(generation, step, phase):
    pass
if orders:
    from penstock.comm import world as worlds
    from penstock.engine import build, step
    from penstock.engine.guard import heart
    from penstock.engine.survive import take_up
    from penstock.optim import Optimizer
    from penstock.store.snapshots import saver

    def strike(place, at):
        for number, (where, rank, when, how) in enumerate(orders):
            if where == place and str(rank) == os.environ.get("RANK") and at in (when, None):
                try:
                    os.close(os.open(os.environ["STRUCK"] + str(number), os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                os.kill(os.getpid(), getattr(signal, how))

    now = [0]
    kept = {"gradients": step.gradients, "update": step.update, "loss": build.Core.loss, "sum": worlds.World.sum_, "save": saver.Saver._save}
    kept["carry"] = take_up.carry_state

    def gradients(parts, at):
        now[0] = at
        return kept["gradients"](parts, at)

    def loss(self, batch):
        strike("forward", now[0])
        return kept["loss"](self, batch)

    def sum_(self, tensor, name):
        if name == "totals":
            strike("collective", now[0])
        return kept["sum"](self, tensor, name)

    def update(parts, factor, at):
        strike("update", at)
        kept["update"](parts, factor, at)

    def save(self, job):
        strike("snapshot", job.step)
        return kept["save"](self, job)

    def carry(*arguments):
        strike("recovery", None)
        return kept["carry"](*arguments)

    step.gradients, step.update, build.Core.loss, worlds.World.sum_ = gradients, update, loss, sum_
    saver.Saver._save, take_up.carry_state = save, carry
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function that trains three ranks with faults; and the digest of the run without any."""
    folder = tmp_path_factory.mktemp("survive")
    (folder / "plant").mkdir()
    (folder / "plant" / "planted.py").write_text(FAULTS)

    def train(name, faults, **changes):
        sets = small_sets(folder, train__steps=STEPS, batch__global=6, snapshot__every=6, eval__every=10, metrics__tensorboard="false", survive__enabled="on", **changes)
        path = os.pathsep.join([str(folder / "plant"), os.environ.get("PYTHONPATH", "")])
        done = penstock(
            "train", *sets, "--nproc", 3, "--run-dir", folder / name, "--json", timeout_s=90, PYTHONPATH=path, PENSTOCK_LISTENER="planted",
            FAULTS=json.dumps(faults), STRUCK=str(folder / f"{name}-struck-"),
        )  # fmt: skip
        return summary(done), folder / name

    return train, train("whole", [])[0]


def recorded(run):
    """Of every rank and generation that wrote rows: the number of ranks then, and the steps."""
    found = {}
    for rank, folder in rank_folders(run / "metrics").items():
        tail = RowTail(folder)
        for part in (one for some in iter(tail.read, []) for one in some):
            found.setdefault(rank, {}).setdefault(part.about.generation, (part.about.ranks, []))[1].extend(part.steps.tolist())
    return found


#: What is done to the ranks, and how many failures the history must tell of.
CASES = {
    "one after the other": (
        [
            ["forward", 1, 8, "SIGKILL"], ["collective", 0, 13, "SIGKILL"], ["update", 2, 18, "SIGKILL"], ["snapshot", 0, 24, "SIGKILL"],
            ["forward", 0, 27, "SIGKILL"], ["forward", 2, 27, "SIGKILL"],
        ],
        5,
    ),
    "during recovery": ([["forward", 1, 11, "SIGKILL"], ["recovery", 2, None, "SIGKILL"]], 2),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_killed_rank_changes_nothing_of_what_is_learned(runs, case):
    train, whole = runs
    faults, least = CASES[case]
    result, run = train(case.replace(" ", "-"), faults)
    assert result["state"] == "finished" and result["step"] == STEPS and len(result["recoveries"]) >= 1
    struck = [step for place, _, step, _ in faults if place != "recovery"]
    assert all(any(step <= entry["step"] <= step + 3 for entry in result["recoveries"]) for step in struck), "each failure was answered"
    assert result["weights_digest"] == whole["weights_digest"]
    assert [found["val_loss"] for found in result["evals"]] == [found["val_loss"] for found in whole["evals"]]
    assert all(entry["step"] >= 8 and entry["seconds"] < 60 for entry in result["recoveries"]), "nothing is taken up from before the failure"
    events = [event.kind for event in read_history(run).events]
    assert events.count("failure") >= least and "recovery" in events
    rows = [row["step"] for row in MetricStore(run / "metrics").read("train")]
    assert rows == sorted(set(rows)), "no step is told twice"
    assert set(recorded(run)) == {0, 1, 2} and {ranks for rank in recorded(run).values() for ranks, _ in rank.values()} == {3}
    by_rank = [{step for _, steps in rank.values() for step in steps} for rank in recorded(run).values()]
    assert set().union(*by_rank) == set(range(1, STEPS + 1)), "ranks go on measuring under their numbers"


@pytest.mark.slow
def test_fewer_ranks_go_on_alone_with_the_same_curve(runs):
    train, whole = runs
    result, run = train("fewer", [["forward", 1, 11, "SIGKILL"]], survive__replace="none")
    assert "2 ranks went on" in str(read_history(run).events) and result["step"] == STEPS
    last = {rank: generations[max(generations)] for rank, generations in recorded(run).items()}
    assert [(rank, ranks) for rank, (ranks, steps) in sorted(last.items()) if STEPS in steps] == [(0, 2), (1, 2)]
    assert result["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_stopped_rank_is_found_and_replaced(runs):
    train, whole = runs
    result, run = train("stopped", [["forward", 1, 11, "SIGSTOP"]], survive__patience_s=1.0)
    assert result["weights_digest"] == whole["weights_digest"]
    assert "rank 1 hung" in result["recoveries"][0]["cause"] and any((run / "stacks").iterdir())


@pytest.mark.slow
def test_what_fails_at_the_same_step_again_and_again_ends_the_run(tmp_path):
    (tmp_path / "planted.py").write_text(FAULTS.replace("os.O_CREAT | os.O_EXCL", "os.O_CREAT"))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = penstock(
        "train", *small_sets(tmp_path, survive__enabled="on"), "--nproc", 2, "--run-dir", tmp_path / "run", check=False, timeout_s=120, PYTHONPATH=path,
        PENSTOCK_LISTENER="planted", FAULTS='[["forward", 1, 3, "SIGKILL"]]', STRUCK=str(tmp_path / "struck"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "rank 1 was killed by SIGKILL after step 3" in done.stderr.splitlines()[-1] and "penstock resume" in done.stderr.splitlines()[-1]


def test_a_beat_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "beats"
    file.write_bytes(bytes(3 * PLACE))
    heart = Heart(file, 1)
    heart.begin(2)
    heart.at(7)
    heart.says("exchange")
    places = opened(file)
    beat = read_beat(places, 1)
    assert (beat.generation, beat.step, beat.taken, beat.phase) == (2, 7, 0, "exchange") and beat.since <= time.monotonic()
    assert read_beat(places, 0) == Beat() == read_beat(places, 2)


def test_a_step_is_overdue_after_three_usual_ones_but_not_while_evaluating(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("penstock.engine.survive.hangs.time.monotonic", lambda: now[0])
    watch = StepWatch(patience_s=0.5)
    for taken in range(6):
        now[0] += 1.0
        assert not watch.overdue([Beat(0, taken, taken, "forward_backward", 1.0, now[0])] * 2, 0)
    now[0] += 2.9
    assert not watch.overdue([Beat(0, 5, 5, "forward_backward", 1.0)] * 2, 0)
    now[0] += 0.2
    assert watch.overdue([Beat(0, 5, 5, "forward_backward", 1.0)] * 2, 0)
    assert not watch.overdue([Beat(0, 5, 5, "evaluation", 1.0)] * 2, 0)


def test_a_stack_inside_an_exchange_waits_and_another_does_not():
    stack = 'Thread 0x1 (most recent call first):\n  File "x.py", line 1 in run\n\nCurrent thread 0x2 (most recent call first):\n  File "{}", line 2 in f\n'
    assert waits(stack.format("/lib/torch/distributed/distributed_c10d.py"))
    assert not waits(stack.format("/lib/torch/nn/functional.py"))
    assert not waits("")


def test_groups_that_were_left_while_they_were_made_are_named_like_a_newcomers():
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    from penstock.engine.starting.launch import HOST
    from penstock.engine.survive.groups import GenerationOver, Groups
    from penstock.engine.survive.wire import Generation, post

    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    groups, before = Groups(store.port, 0, timeout_s=30), dist.distributed_c10d._world.group_count
    post(store, Generation(1, (0, 1)))  # the other rank of generation 0 is lost before it comes
    with pytest.raises((GenerationOver, dist.DistError)):  # the second as the store of this test ends with the groups
        dist.init_process_group("gloo", store=groups.store, rank=0, world_size=2)
    assert dist.distributed_c10d._world.group_count == before + 1, "else this test has lost its object"
    groups.leave()
    assert not dist.is_initialized() and dist.distributed_c10d._world.group_count == 0


def test_an_error_is_told_of_the_rank_that_a_process_has_come_to_be(tmp_path, monkeypatch):
    from penstock.engine.guard.failures import run_reporting, said_by

    def work():
        monkeypatch.setenv("RANK", "3")  # as a process does that has taken a lost rank's place
        raise ValueError("no such thing")

    def leave(code):
        raise SystemExit(code)

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        run_reporting(tmp_path, work)
    assert said_by(tmp_path, 3, 1) == "rank 3 failed with ValueError: no such thing"


def test_a_connection_that_is_gone_is_told_from_a_fault_of_ones_own():
    from penstock.engine.survive.groups import is_broken

    assert is_broken(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"))
    assert not is_broken(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not is_broken(ValueError("gloo"))


def test_ranks_that_stay_when_others_have_lost_their_connection_are_noticed_and_those_that_evaluate_are_left(monkeypatch):
    now = 0.0
    monkeypatch.setattr("penstock.engine.survive.hangs.time.monotonic", lambda: now)
    watch = StepWatch(patience_s=3.0)
    torn = [Beat(4, 7, 9, "broken"), Beat(4, 7, 9, "exchange")]
    assert not watch.split(torn, 4)
    now = 1.1
    assert watch.split(torn, 4) and not watch.split([torn[1], torn[1]], 4) and not watch.split(torn, 4), "counted anew"
    ahead, evaluates = Beat(5, 7, 0, "start"), Beat(4, 7, 9, "evaluation")
    assert watch.left_behind([ahead, torn[1]], 5) == []
    now = 4.2
    assert watch.left_behind([ahead, torn[1], evaluates], 5) == [1]
    assert watch.left_behind([ahead, evaluates], 5) == [] == watch.left_behind([ahead, torn[1]], 5)
    assert StepWatch(patience_s=0).left_behind([ahead, torn[1]], 5) == [], "without patience nobody is killed"
