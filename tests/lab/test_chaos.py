"""The fault lab: a seed plans the same faults, they strike where they are planned, and what is not survived is said to be so."""

import json
import os
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from small_runs import penstock, refused, small_config, small_sets

from penstock.config import UserError
from penstock.lab.chaos.acts import ACTS
from penstock.lab.chaos.desk import Desk
from penstock.lab.chaos.kinds import KINDS
from penstock.lab.chaos.plan import FIRST, GAP, Fault, make_plan
from penstock.lab.chaos.runs import Command, Ended, Limits, run_with_faults
from penstock.lab.chaos.study import run_chaos
from penstock.lab.chaos.verdict import judge, weigh
from penstock.store import append_event, read_history

LONG = {"train__steps": 400, "snapshot__every": 20, "eval__every": 25}


def plan(tmp_path, faults=200, seed=0, kinds=(), ranks=4, **changes):
    return make_plan(small_config(tmp_path, **(LONG | changes)), ranks, faults, seed, kinds)


def test_a_seed_plans_the_same_faults_of_every_kind_apart_from_each_other(tmp_path):
    made = plan(tmp_path)
    assert made == plan(tmp_path) and made != plan(tmp_path, seed=1) and not made.skipped
    faults = [fault for run in made.runs for fault in run]
    assert [fault.number for fault in faults] == list(range(1, 201))
    counts = Counter(fault.kind for fault in faults)
    assert counts.keys() == KINDS.keys() and len(counts) >= 12 and max(counts.values()) - min(counts.values()) <= 1
    for run in made.runs:
        steps = [fault.step for fault in run]
        assert steps[0] >= FIRST and steps[-1] < 400 and all(after - before >= GAP for before, after in pairwise(steps))
        assert all(fault.step % 20 == 0 for fault in run if fault.phase == "snapshot")
        assert all(fault.step % 25 == 0 for fault in run if fault.phase == "evaluation")
        assert all(fault.step > KINDS[fault.kind].snapshots * 20 for fault in run if KINDS[fault.kind].snapshots)
    assert all(fault.rank == 0 for fault in faults if fault.kind == "kill-lead") and all(0 <= fault.rank < 4 and fault.other != fault.rank for fault in faults)


@pytest.mark.slow
def test_what_cannot_be_planted_is_skipped_with_the_reason(tmp_path):
    skipped = plan(tmp_path, snapshot__every=0, survive__patience_s=0).skipped
    assert "snapshot.every = 0" in skipped["kill-snapshot"] and "nothing to go on from" in skipped["stop-resume"] and "patience" in skipped["hang-stuck"]
    assert "too few" in plan(tmp_path, ranks=2, survive__replace="none").skipped["kill-two"]
    alone = plan(tmp_path, faults=20, survive__replace="none").runs
    assert len(alone) > 1 and all(sum(KINDS[fault.kind].loses for fault in run) <= 3 for run in alone), "somebody must be left"
    for wrong, match in (({"kinds": ["kil-lead"]}, "did you mean 'kill-lead'"), ({"faults": 0}, "at least one"), ({"train__steps": 5}, "it needs step")):
        with pytest.raises(UserError, match=match):
            plan(tmp_path, **wrong)


def test_every_kind_has_an_act_and_its_phases_are_beats():
    from penstock.engine.guard.heart import PHASES

    assert {kind.act for kind in KINDS.values()} - {"slow"} == set(ACTS)
    assert all(set(kind.phases) <= set(PHASES) for kind in KINDS.values())


def test_a_fault_strikes_once_whoever_comes_to_it(tmp_path):
    run, desk = tmp_path / "run", Desk(tmp_path / "faults")
    run.mkdir()
    append_event(run, "start", "began")
    faults = (Fault(1, "link", 5, "data", 1, choice=0), Fault(2, "kill-two", 9, "exchange", 0, other=1))
    desk.lay_out(run, faults)
    assert desk.plan() == (run, list(faults))
    assert desk.mark("1", run, time=1.0) and not desk.mark("1", run, time=2.0)
    assert desk.marks() == {"1": {"time": 1.0, "seq": 1}} and desk.has_mark("2") is None
    desk.register(3, generation=7)
    assert desk.ranks() == desk.ranks(7) == {os.getpid(): 3} and desk.ranks(6) == {}


def test_acts_are_the_systems_own_refusals(tmp_path, monkeypatch):
    from penstock.engine.survive.groups import is_broken
    from penstock.lab.chaos import acts

    place = acts.Place(Desk(tmp_path / "faults"), tmp_path, 0)
    for choice in range(3):
        with pytest.raises((MemoryError, RuntimeError)) as found:
            acts.exhaust(Fault(1, "out-of-memory", 5, "data", 1, choice=choice), place)
        assert not is_broken(found.value), "memory that ran out is no lost connection"
    monkeypatch.setattr(os, "write", os.write)
    acts.refuse_disk(Fault(1, "disk-full", 20, "snapshot", 1), place)
    for name, full in (("step-00000020-rank-00001-ab.pack.partial", True), ("step-00000040-rank-00001-ab.pack.partial", False)):
        with open(tmp_path / name, "wb", buffering=0) as file:
            if full:
                with pytest.raises(OSError, match="No space left"):
                    os.write(file.fileno(), b"x")
            else:
                assert os.write(file.fileno(), b"x") == 1


def test_what_the_lab_cannot_judge_is_refused(tmp_path):
    sets = tuple(small_sets(tmp_path)[1::2])
    for command, match in (
        (Command(None, sets, 1), "--nproc 2 or more"),
        (Command(None, (*sets, "batch.micro=auto"), 2), "follows measured times"),
        (Command(None, (*sets, "layout.shard=3"), 2), "shard"),
    ):
        with pytest.raises(UserError, match=match):
            run_chaos(command, tmp_path / "study", 4, 0, (), print)
    assert not (tmp_path / "study").exists() and "runs `train`" in refused("chaos", "--", "resume", "last")


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """A study of four faults, that ended well."""
    folder = tmp_path_factory.mktemp("chaos")
    sets = small_sets(folder, train__steps=36, snapshot__every=6, eval__every=12, metrics__tensorboard="false")
    done = penstock(
        "chaos", "--faults", 4, "--seed", 3, "--kinds", "kill-collective,link,slow,disk-full", "--json", "--",
        "train", *sets, "--nproc", 2, "--run-dir", folder / "study", check=False, timeout_s=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), folder / "study"


@pytest.mark.slow
def test_a_run_survives_its_faults_and_the_study_says_what_was_done(survived):
    told, folder = survived
    assert (told["survived"], told["of"]) == (4, 4) and json.loads((folder / "verdict.json").read_text()) == told
    assert all(run["same_weights"] and not run["defect"] for run in told["runs"])
    faults = {fault["kind"]: fault for fault in told["faults"]}
    assert "from the state in memory" in faults["kill-collective"]["how"] and "the same ranks went on" in faults["link"]["how"]
    assert "could not be saved" in faults["disk-full"]["how"] and faults["slow"]["how"] == "went on"
    assert all(fault["struck"] and fault["told"] and fault["seconds"] > 0 and fault["steps_again"] <= 1 for fault in faults.values())


@pytest.mark.slow
def test_wrong_weights_or_an_untold_fault_are_not_survived(survived):
    told, folder = survived
    faults = tuple(Fault(**{key: fault[key] for key in Fault.__dataclass_fields__}) for fault in told["faults"])
    summary = json.loads((folder / "run-1" / "run" / "summary.json").read_text())
    marks = Desk(folder / "run-1" / "faults").marks()
    ended = Ended(folder / "run-1" / "run", summary, "", 1.0, 0, marks, (max(mark["time"] for mark in marks.values()) + 1,))
    reference = replace(ended, run=folder / "reference" / "run")
    assert all(found.survived for found in judge(1, faults, ended, weigh(ended, reference, exactly=True)))
    other = weigh(replace(ended, summary=summary | {"weights_digest": "0"}), reference, exactly=True)
    assert not other.right and not any(found.survived for found in judge(1, faults, ended, other))
    unstruck = judge(1, faults, replace(ended, marks={}), weigh(ended, reference, exactly=True))
    assert {found.why for found in unstruck} == {"it never struck"} and not any(found.survived for found in unstruck)
    silent = tuple(replace(fault, kind="stop-resume") for fault in faults)
    assert all("no resume of it" in found.why for found in judge(1, silent, ended, weigh(ended, reference, exactly=True)))
    assert read_history(ended.run).damage == []


@pytest.mark.slow
def test_a_run_that_hangs_is_ended_with_the_stacks_of_its_ranks(tmp_path):
    sets = small_sets(tmp_path, train__steps=30, survive__enabled="on", survive__patience_s=0)[1::2]
    began, lines = time.monotonic(), []
    ended = run_with_faults(Command(None, tuple(sets), 2), tmp_path / "lab", (Fault(1, "hang-stuck", 5, "data", 1),), Limits(45, 500), lines.append)
    assert "nothing happened for 45 s" in ended.defect and time.monotonic() - began < 480 and "hang-stuck at step 5" in lines[0]
    stacks = "".join(file.read_text() for file in (ended.run / "stacks").iterdir())
    assert "in stick" in stacks and "supervisor.py" in (tmp_path / "lab" / "log.txt").read_text()
    assert Desk(tmp_path / "lab" / "faults").ranks() == {}, "all its processes have ended"
