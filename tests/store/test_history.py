"""The history: every line seals all before it; what was changed, dropped or moved is named, what a crash tore is cut off."""

import json

import pytest
from small_store import SmallStore

from penstock.store import append_event, history_head, read_history, verify_run
from penstock.store.places.folder import LocalFolder


def told(path, count=5):
    for i in range(count):
        append_event(path, "note", f"event {i}", i, value=float("nan") if i == 2 else {"a": (1, 2)})
    return (path / "history.jsonl").read_bytes().splitlines(keepends=True)


def damage(path, lines):
    (path / "history.jsonl").write_bytes(b"".join(lines))
    return "; ".join(read_history(path).damage)


def test_events_are_read_as_told(tmp_path):
    told(tmp_path)
    history = read_history(tmp_path)
    assert not history.damage and not history.torn
    assert [(event.seq, event.kind, event.step, event.text) for event in history.events] == [(i + 1, "note", i, f"event {i}") for i in range(5)]
    assert history.events[1].data == {"value": {"a": [1, 2]}} and history.events[2].data == {"value": "nan"}
    assert history_head(tmp_path) == {"seq": 5, "hash": history.events[-1].hash}
    assert history_head(tmp_path / "elsewhere") == {"seq": 0, "hash": ""}


def test_a_changed_dropped_or_moved_line_is_named(tmp_path):
    lines = told(tmp_path)
    assert "line 2 (note, step 1) was changed" in damage(tmp_path, [lines[0], lines[1].replace(b"event 1", b"event 7"), *lines[2:]])
    assert "line 3 does not follow" in damage(tmp_path, [*lines[:2], *lines[3:]])
    assert "line 1 does not follow" in damage(tmp_path, lines[1:])
    assert "line 2 does not follow" in damage(tmp_path, [lines[0], lines[2], lines[1], *lines[3:]])
    assert "line 4 does not follow" in damage(tmp_path, [*lines[:3], lines[2], *lines[3:]])
    assert "lost its last 2 lines" in damage(tmp_path, lines[:3])
    assert "lost its last 5 lines" in damage(tmp_path, [])
    assert damage(tmp_path, [*lines[:2], b"\0" * 80 + b"\n", *lines[3:]]) == "history.jsonl line 3 is not an event: it was overwritten"
    assert damage(tmp_path, lines) == ""
    (tmp_path / "history.head").unlink()
    assert "history.head is missing" in damage(tmp_path, lines)


def test_a_history_written_again_as_a_whole_does_not_fit_its_head_nor_its_snapshots(tmp_path):
    made = SmallStore(tmp_path / "run")
    made.tell("start", "began")
    made.save(1)
    head = (made.path / "history.head").read_bytes()
    other = SmallStore(tmp_path / "other")
    other.tell("start", "began, but otherwise")
    other.manifests = list(made.manifests)
    append_event(other.path, "snapshot", "saved", 1, id=made.manifests[0].id)
    (made.path / "history.jsonl").write_bytes((other.path / "history.jsonl").read_bytes())
    assert any("was written again" in what for what in read_history(made.path).damage)
    (made.path / "history.head").write_bytes((other.path / "history.head").read_bytes())
    assert not read_history(made.path).damage
    found = verify_run(made.folder)
    assert [(d.file, "line 1 is not the one after which the snapshot of step 1 was written" in d.what) for d in found.damage] == [("history.jsonl", True)]
    assert head != (made.path / "history.head").read_bytes()


@pytest.mark.parametrize("tail", [b'{"seq": 6, "time": "2026', b"\0\0\0\0", b"{}" * 100_000])
def test_a_torn_last_line_is_named_and_cut_off_by_the_next_event(tmp_path, tail):
    told(tmp_path)
    with open(tmp_path / "history.jsonl", "ab") as file:
        file.write(tail)
    history = read_history(tmp_path)
    assert f"{len(tail)} bytes of a line that a crash tore" in history.torn and not history.damage and len(history.events) == 5
    append_event(tmp_path, "resume", "went on", 4)
    history = read_history(tmp_path)
    assert not history.torn and not history.damage and [event.seq for event in history.events] == [1, 2, 3, 4, 5, 6]


def test_a_gap_stays_visible_when_more_is_told(tmp_path):
    lines = told(tmp_path)
    (tmp_path / "history.jsonl").write_bytes(b"".join(lines[:3]))
    append_event(tmp_path, "note", "nothing happened", 9)
    assert read_history(tmp_path).damage == ["history.jsonl line 4 does not follow on the one before: lines were changed, dropped or moved there"]


def test_a_clock_that_jumps_back_changes_no_order(tmp_path, monkeypatch):
    import penstock.store.story.history as module

    times = iter(["2030-01-01T00:00:00+0000", "1970-01-01T00:00:00+0000", "2029-01-01T00:00:00+0000"])
    monkeypatch.setattr(module.time, "strftime", lambda *_: next(times))
    for text in ("first", "second", "third"):
        append_event(tmp_path, "note", text)
    history = read_history(tmp_path)
    assert [event.text for event in history.events] == ["first", "second", "third"] and not history.damage


def test_lines_of_anything_are_told_not_raised(tmp_path):
    lines = told(tmp_path, 2)
    row = json.loads(lines[0])
    for line in ({**row, "data": 3}, {**row, "seq": True}, {**row, "more": 1}, {**row, "data": {"a": float("inf")}}, [], {**row, "text": "\ud800"}):
        assert damage(tmp_path, [json.dumps(line).encode() + b"\n", lines[1]])
    assert damage(tmp_path, [b"[" * 100_000 + b"\n", lines[1]])
    with pytest.raises(AssertionError, match="no kind of event"):
        append_event(tmp_path, "gossip", "")
    assert read_history(LocalFolder(tmp_path / "nowhere")).events == []
