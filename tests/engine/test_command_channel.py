"""A running run takes commands: all ranks carry one out after the same step, it is answered and told, and none is left lying about."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ranks import run_ranks
from small_runs import small_config

from penstock.config import UserError
from penstock.engine.requests.commands import FOLDER, Answer, Command, Inbox, pending, release, send
from penstock.engine.requests.obey import HANDLERS
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.store import Run, current_writer, read_history, writer_lock


def prepared(tmp_path, **changes):
    many = {"train__steps": 3000, "snapshot__every": 0, "eval__every": 0, "metrics__tensorboard": "false"}
    return make_run(small_config(tmp_path, **many | changes), "test", "test", tmp_path / "run", None).path


def obedient(world, folder):
    """A rank that knows two commands; returns what it was told, and after which steps."""
    told = []

    def note(parts, command):
        told.append((parts.progress.step, command.arguments["text"]))
        if command.arguments["text"] == "bad":
            raise UserError("that is bad")
        return Answer("done", f"noted {command.arguments['text']}", data={"rank": parts.world.rank})

    def end(parts, command):
        told.append((parts.progress.step, "end"))
        parts.until = parts.progress.step + 1
        return Answer("done", "ends")

    HANDLERS.update(note=note, end=end)
    run_rank(Run(folder), world)
    return told


def when_it_runs(run, *orders):
    """Send orders one after the other when the run has begun; returns the answers."""
    while current_writer(run) is None:
        time.sleep(0.02)
    return [send(run, kind, arguments, 60.0) for kind, arguments in orders]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"layout__shard": 2}, {"layout__pipeline": 2, "pipeline__schedule": "1f1b", "pipeline__check": "after", "optim__clip": 100.0}],
    ids=["shard", "late check"],
)
def test_all_ranks_carry_a_command_out_after_the_same_step(tmp_path, changes):
    run = prepared(tmp_path, **changes)
    orders = [("note", {"text": "good"}), ("note", {"text": "bad"}), ("nite", {}), ("end", {})]
    with ThreadPoolExecutor() as pool:
        answers = pool.submit(when_it_runs, run, *orders)
        first, second = run_ranks(obedient, 2, run)
        good, bad, unknown, end = answers.result()
    assert first == second and [text for _, text in first] == ["good", "bad", "end"]
    assert (good.state, good.text, good.step) == ("done", "noted good", first[0][0])
    assert (bad.state, bad.text, end.state) == ("refused", "that is bad", "done")
    assert unknown.state == "refused" and "did you mean 'note'?" in unknown.text
    events = [(event.kind, event.step, event.text) for event in read_history(run).events if "command" in event.data]
    assert events[:2] == [("change", good.step, "noted good"), ("note", bad.step, "refused to note: that is bad")]
    assert os.listdir(run / FOLDER) == []


def test_a_command_on_hold_waits_for_what_it_needs(tmp_path):
    with writer_lock(tmp_path):
        inbox = Inbox(tmp_path)
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(send, tmp_path, kind, {}, 5.0, hold) for kind, hold in (("later", True), ("now", False))]
            while not (pending(tmp_path) and inbox.waits()):
                time.sleep(0.01)
            (held,) = pending(tmp_path)
            assert held.kind == "later" and inbox.take().kind == "now" and not inbox.waits()
            release(tmp_path, held.name)
            assert inbox.waits() and inbox.take() == held and pending(tmp_path) == []
            for file in (tmp_path / FOLDER).glob("*.taken"):
                (tmp_path / FOLDER / file.name.replace(".taken", ".answer.json")).write_text('{"state": "done", "text": ""}')
            assert [answer.result().state for answer in answers] == ["done", "done"]


def test_what_nobody_waits_for_is_not_carried_out(tmp_path):
    with writer_lock(tmp_path), pytest.raises(UserError, match=r"gave no answer within 0 s.*taken back"):
        send(tmp_path, "note", {}, 0.1)
    assert not Inbox(tmp_path).waits()
    (tmp_path / FOLDER / "1-note.json").write_text('{"name": "1-note", "kind": "note", "arguments": {}, "who": "", "until": 1.0}')
    (tmp_path / FOLDER / "2-note.json").write_text("{")
    inbox = Inbox(tmp_path)
    assert inbox.waits() and inbox.take() is None and not inbox.waits()


def test_who_may_not_ask_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"does not run .*penstock resume"):
        send(tmp_path, "note", {}, 1.0)
    with writer_lock(tmp_path), monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
        with pytest.raises(UserError, match="not yours"):
            send(tmp_path, "note", {}, 1.0)
    command = Command("1-note", "note", {}, "somebody", time.time() + 60)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "1-note.json").write_text(json.dumps(vars(command)))
    if os.geteuid() == 0:
        os.chown(tmp_path / FOLDER / "1-note.json", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert Inbox(tmp_path).take() is None, "a file of somebody else's is no command"
