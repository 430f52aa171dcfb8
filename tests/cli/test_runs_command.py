"""`penstock runs` as a user types it: a run's story, its snapshots by name, verifying, collecting, pinning, sending."""

import json
import sys
from pathlib import Path

import pytest
from small_store import SmallStore

from penstock.config import load_config
from penstock.store import Policy, collect, create_run, find_snapshot, list_snapshots, writer_lock


@pytest.fixture
def story(tmp_path, monkeypatch):
    """A run that went on from an older snapshot after a failure, in the current folder's `runs/mine`."""
    monkeypatch.chdir(tmp_path)
    made = SmallStore(create_run(load_config("tiny", ["snapshot.keep=3"]), Path("runs/mine"), {}).path)
    made.tell("start", "began on 4 ranks", 0)
    for step in (10, 20, 30, 40, 50, 60, 70):
        made.save(step, loss=3 - step / 100, val_loss=3.5 - step / 100)
    collect(made.path, Policy(keep=3), published=70)
    made.tell("failure", "rank 2 was killed", 75)
    made.tell("resume", "went on from step 60 on 3 ranks", 60)
    made.tell("change", "optim.lr 0.001 → 0.0005", 60)
    made.save(70, parent=made.manifests[5], loss=2.0)
    made.save(80, loss=1.9)
    made.tell("note", "for table 3", 80)
    return made


def test_the_story_is_told_as_a_tree(story, here, answer):
    code, out, err = here("runs", "log", "mine")
    assert code == 0, err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    tree = [(line.split()[0], *line.split()[1:3]) for line in lines[3:]]
    assert lines[0] == "runs/mine failed at step 80" and lines[1].startswith("5 of 9 snapshots here; 15 events: each sealed by the next")
    assert tree == [
        ("note", "80", lines[3].split()[2]), ("●", "step", "80"), ("●", "step", "70"), ("│", "change", "60"), ("│", "resume", "60"),
        ("│", "failure", "75"), ("│", "●", "step"), ("├─╯",), ("●", "step", "60"), ("●", "step", "50"), ("○", "step", "40"), ("start", "0", lines[14].split()[2]),
    ]  # fmt: skip
    assert "loss 1.9000" in lines[4] and lines[4].endswith("newest")
    assert "in full" in lines[9] and "of 512 B" in lines[5] and "down to step 10: 4 snapshots dropped" in lines[13]
    told = answer("runs", "log", "mine")
    assert (told["state"], told["step"], len(told["events"]), told["damage"]) == ("failed", 80, 15, [])
    assert [(one["step"], one["state"]) for one in told["snapshots"]] == [*((step, "dropped") for step in (10, 20, 30, 40)), *((step, "here") for step in (50, 60, 70, 70, 80))]
    collect(story.path, Policy(keep=1), published=80)
    drawn = [line.split("20")[0].split() for line in here("runs", "log", "mine")[1].splitlines()]
    assert drawn[-4:] == [["│", "○", "step", "70"], ["├─╯"], ["○", "step", "60"], ["start", "0"]], "where a branch began is not hidden"
    (story.path / "history.jsonl").write_bytes(b"".join((story.path / "history.jsonl").read_bytes().splitlines(keepends=True)[:-1]))
    assert "the chain is broken" in here("runs", "log", "mine")[1] and "lost its last 1 lines" in answer("runs", "log", "mine")["damage"][0]


@pytest.mark.slow
def test_a_snapshot_has_several_names(story, here, answer, refuses):
    newest = list_snapshots(story.path)[-1]
    for name in ("mine", "last", "runs/mine", "mine@80", f"mine@{newest.id}", f"runs/mine@{newest.id[:5]}", newest.path):
        shown = answer("runs", "show", name)
        assert (shown["snapshot"]["step"], shown["snapshot"]["id"][:12], shown["step"]) == (80, newest.id, 80), name
    assert answer("runs", "show", "mine@70")["snapshot"]["id"] == story.manifests[-2].id, "the newest of that step"
    code, out, _ = here("runs", "show", "mine@50")
    assert code == 0 and "as increments" in out and "loss 2.5" in out and story.manifests[4].id in out
    assert "has no snapshot '55'; there are steps 50, 60, 70, 70, 80" in refuses("runs", "show", "mine@55")
    assert "belong behind the command: penstock runs show" in refuses("runs", "--json", "show", "mine")
    assert "no run 'yours'" in refuses("runs", "show", "yours@70")
    assert "not the manifest of a snapshot" in refuses("runs", "show", "runs/mine/run.json")


@pytest.mark.slow
def test_a_run_is_shown_while_it_is_running_and_before_it_has_a_snapshot(tmp_path, answer, here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = create_run(load_config("tiny"), Path("runs/mine"), {})
    assert answer("runs", "show", "mine")["state"] == "new"
    (run.path / "metrics").mkdir()
    (run.path / "metrics" / "train.jsonl").write_text(json.dumps({"step": 6}) + "\n" + json.dumps({"step": 7}) + '\n{"ste')
    with writer_lock(run.path):
        shown = answer("runs", "show", "mine")
        assert (shown["run"], shown["step"], shown["state"], shown["snapshot"]) == ("runs/mine", 7, "running", None)
        assert here("runs", "show", "mine")[1] == "runs/mine  running at step 7, without a snapshot yet\n"
    for state in ("finished", "interrupted"):
        run.write("summary.json", {"state": state, "step": 9})
        assert (answer("runs")["runs"][0]["state"], answer("runs")["runs"][0]["step"]) == (state, 9)
    SmallStore(run.path).save(12)
    assert answer("runs")["runs"][0]["state"] == "failed", "it went on after that, and did not end"
    assert "runs/mine" in here("runs")[1] and "failed" in here("runs")[1]


def test_damage_is_told_with_exit_code_1(story, here, answer):
    assert answer("runs", "verify", "mine")["damaged"] is False
    assert here("runs", "verify", "mine")[1].startswith("runs/mine: 5 snapshots, ") and "all as written" in here("runs", "verify", "mine")[1]
    newest = list_snapshots(story.path)[-1]
    newest.path.write_bytes(newest.path.read_bytes()[:50])
    code, out, _ = here("runs", "verify", "mine")
    assert code == 1 and newest.file in out and "step 80 does not load" in out and "4 of 5 snapshots load; the newest that loads is step 70" in out
    code, out, _ = here("runs", "verify", "mine", "--json")
    assert code == 1 and json.loads(out)["newest_intact"]["step"] == 70 and json.loads(out)["damage"][0]["file"] == newest.file


@pytest.mark.slow
def test_what_need_not_be_kept_is_collected_and_what_is_pinned_is_not(story, here, answer):
    assert answer("runs", "pin", "mine@50") == {"run": "runs/mine", "id": story.manifests[4].id[:12], "step": 50, "pinned": True}
    said = answer("runs", "gc", "mine", "--keep", 1, "--dry-run")
    assert [one["step"] for one in said["dropped"]] == [60, 70, 70] and said["kept"] == 2 and len(list_snapshots(story.path)) == 5
    assert "dropped 1 snapshot (step 60) and" in here("runs", "gc", "mine")[1], "the run's own policy keeps three"
    answer("runs", "unpin", "mine@50")
    assert [one["step"] for one in answer("runs", "gc", "mine", "--keep", 1, "--keep-every", 70, "--keep-best", 1)["dropped"]] == [50]
    assert answer("runs", "verify", "mine")["snapshots"] == 3


@pytest.mark.slow
def test_a_run_goes_elsewhere_and_comes_back(story, here, answer, refuses, tmp_path):
    code, out, err = here("runs", "push", "mine", f"file://{tmp_path}/elsewhere/mine")
    assert code == 0 and out.startswith("sent 5 snapshots in ") and out.endswith("; 0 snapshots there already\n"), err
    assert answer("runs", "pull", f"{tmp_path}/elsewhere/mine", "runs/again")["snapshots"] == 5
    assert answer("runs", "verify", "again")["damaged"] is False and answer("runs", "pull", f"{tmp_path}/elsewhere/mine")["snapshots"] == 0
    assert answer("runs", "verify", f"file://{tmp_path}/elsewhere/mine")["snapshots"] == 5
    assert find_snapshot("again").id == find_snapshot("mine").id
    pack = next(Path("runs/again/packs").iterdir())
    pack.write_bytes(pack.read_bytes()[:30])
    code, out, _ = here("runs", "push", "again", f"{tmp_path}/third", "--json")
    assert code == 1 and json.loads(out)["damaged"] and json.loads(out)["snapshots"] < 5
    assert "has no run" in refuses("runs", "pull", f"{tmp_path}/nothing")
    assert "penstock[s3]" in refuses("runs", "push", "mine", "s3://bucket/mine") or "s3fs" in sys.modules
