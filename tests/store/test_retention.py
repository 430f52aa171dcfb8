"""Retention and collection: what the policy keeps, what is pinned or used stays, and nothing that anything needs is removed."""

import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import SmallStore

from penstock.config import UserError
from penstock.store import (
    Damaged,
    Policy,
    Row,
    collect,
    find_snapshot,
    in_use,
    indexed,
    list_snapshots,
    pin,
    read_history,
    verify_run,
    writer_lock,
)
from penstock.store.places import locks
from penstock.store.places.locks import all_in_use, current_writer
from penstock.store.snapshots.retention import chosen


def row(step, val_loss=None, wall_s=0.0):
    return Row(f"{step}", f"{step:064}", step, None, "", True, None, val_loss, wall_s, 0, 0, 0, 0, "{}")


def kept(rows, **policy):
    return sorted(int(file) for file in chosen(rows, Policy(**policy)))


def test_each_rule_keeps_its_own_and_the_newest_always_stays():
    rows = [row(step, val_loss=abs(step - 35) / 10, wall_s=step * 600.0) for step in range(10, 101, 10)]
    assert kept(rows, keep=0) == list(range(10, 101, 10))
    assert kept(rows, keep=3) == [80, 90, 100]
    assert kept(rows, keep=1, keep_every=40) == [40, 80, 100]
    assert kept(rows, keep=1, keep_best=2) == [30, 40, 100]
    assert kept(rows, keep=1, keep_hours=5) == [10, 30, 60, 90, 100]
    assert kept([], keep=1) == [] and kept([row(1)], keep=1, keep_best=3) == [1]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.one_of(st.none(), st.floats(0, 9)), st.floats(0, 1e5)), max_size=30, unique_by=lambda made: made[0]),
    st.builds(Policy, st.integers(0, 5), st.integers(0, 40), st.just(0.0) | st.floats(0.01, 10), st.integers(0, 4)),
)
def test_collecting_twice_keeps_what_collecting_once_does(made, policy):
    rows = [row(step, loss, wall) for (step, loss, _), (_, _, wall) in zip(sorted(made, key=lambda m: m[0]), sorted(made, key=lambda m: m[2]))]
    once = chosen(rows, policy)
    left = [one for one in rows if one.file in once]
    assert chosen(left, policy) == once and (not rows or rows[-1].file in once)


def store(path, count=8):
    made = SmallStore(path)
    for step in range(1, count + 1):
        made.save(step)
    return made


def steps(made):
    return [snapshot.step for snapshot in list_snapshots(made.path)]


def test_a_dry_run_says_what_a_collection_then_does(tmp_path):
    made = store(tmp_path)
    said = collect(tmp_path, Policy(keep=2), dry_run=True)
    assert steps(made) == list(range(1, 9))
    done = collect(tmp_path, Policy(keep=2))
    assert (said.dropped, said.packs, said.bytes) == (done.dropped, done.packs, done.bytes) and [one.step for one in done.dropped] == [1, 2, 3, 4, 5, 6]
    assert steps(made) == [7, 8] and not verify_run(made.folder).damage
    event = read_history(tmp_path).events[-1]
    assert event.kind == "gc" and event.data["dropped"] == [one.id for one in done.dropped]
    assert collect(tmp_path, Policy(keep=2)).dropped == [] and read_history(tmp_path).events[-1] == event, "what does nothing is not told"


def test_what_is_pinned_or_being_read_stays(tmp_path):
    made = store(tmp_path)
    pin(find_snapshot(f"{tmp_path}@2"))
    with in_use(find_snapshot(f"{tmp_path}@4")):
        collect(tmp_path, Policy(keep=1))
        assert steps(made) == [2, 4, 8] and len(verify_run(made.folder).intact) == 3
    with all_in_use(made.folder):
        collect(tmp_path, Policy(keep=1))
        assert steps(made) == [2, 4, 8]
    gone = find_snapshot(f"{tmp_path}@4")
    collect(tmp_path, Policy(keep=1))
    assert steps(made) == [2, 8] and list((tmp_path / ".reading").iterdir()) == []
    with pytest.raises(Damaged, match="has just been removed"), in_use(gone):
        pass
    pin(find_snapshot(f"{tmp_path}@2"), keep=False)
    collect(tmp_path, Policy(keep=1))
    assert steps(made) == [8] and not verify_run(made.folder).damage


@pytest.mark.parametrize("content", [b"", b"{}", b'["../x"]', b"\x80\x04K\x01.", b"[1]", b"[" * 100_000])
def test_with_damaged_pins_nothing_is_removed(tmp_path, content):
    made = store(tmp_path, 3)
    (tmp_path / "pins.json").write_bytes(content)
    with pytest.raises(UserError, match=r"pins\.json is damaged, so nothing is removed"):
        collect(tmp_path, Policy(keep=1))
    assert steps(made) == [1, 2, 3]


def test_damaged_snapshots_are_not_counted_and_what_they_may_need_stays(tmp_path):
    made = store(tmp_path)
    newest = list_snapshots(tmp_path)[-1]
    newest.path.write_bytes(newest.path.read_bytes()[:-40])
    packs = made.folder.names("packs")
    done = collect(tmp_path, Policy(keep=2))
    assert steps(made) == [6, 7, 8] and "cannot be read" in done.left[0], "the newest two that are whole, and the damaged one"
    named = {f"packs/{pack}" for manifest in made.manifests[:5] for pack in manifest.packs}
    needed = {f"packs/{pack}" for manifest in made.manifests[5:7] for pack in manifest.packs}
    assert set(made.folder.names("packs")) == set(packs) - (named - needed), "packs that only the damaged one named are there"
    (tmp_path / "packs" / made.manifests[6].packs[-1]).unlink()
    collect(tmp_path, Policy(keep=1))
    assert 6 in steps(made) and 7 in steps(made), "a snapshot whose pack is gone does not push out a good one"


def test_a_run_that_went_on_from_an_older_snapshot_has_its_newest_last_and_keeps_it(tmp_path):
    made = SmallStore(tmp_path)
    made.save(1, tell=False)  # as the one that a fork began from
    for step in range(2, 7):
        made.save(step)
    damaged = list_snapshots(tmp_path)[-1]
    made.save(4, parent=made.manifests[2])
    assert steps(made) == [1, 2, 3, 4, 5, 6, 4] and indexed(tmp_path).rows[-1].id == made.manifests[-1].id
    done = collect(tmp_path, Policy(keep=1), published=4)
    assert steps(made) == [4] and damaged.id in {one.id[:12] for one in done.dropped}
    made.save(9, tell=False)
    assert steps(made) == [4, 9], "its writer died before it could be told"
    made.save(8, parent=made.manifests[-2])
    assert steps(made) == [4, 8, 9] and [snapshot["step"] for snapshot in verify_run(made.folder).intact] == [4, 8, 9]


def test_while_a_run_is_written_packs_without_a_name_stay(tmp_path):
    made = store(tmp_path)
    made.folder.write("packs/step-00000009-rank-00000-0badcafe.pack", b"being written")
    made.folder.write("packs/step-00000003-rank-00001-0badcafe.pack", b"left behind")
    with writer_lock(tmp_path):
        done = collect(tmp_path, Policy(keep=2))
        assert "being written by process" in done.left[0] and len(made.folder.names("packs")) == 4 + 2 - 1, made.folder.names("packs")
        collect(tmp_path, Policy(keep=1), published=8)
        names = made.folder.names("packs")
        assert "packs/step-00000009-rank-00000-0badcafe.pack" in names and "packs/step-00000003-rank-00001-0badcafe.pack" not in names
    collect(tmp_path, Policy(keep=1))
    assert "packs/step-00000009-rank-00000-0badcafe.pack" not in made.folder.names("packs") and not verify_run(made.folder).notes


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WRITER_WAIT_S", 0.1)
    reading, writing = os.pipe()
    first = os.fork()
    if not first:
        with writer_lock(tmp_path):
            os.write(writing, b"held")
            signal.pause()
    assert os.read(reading, 4) == b"held"
    with pytest.raises(UserError, match=f"being written by process {first} on host"), writer_lock(tmp_path):
        pass
    assert f"process {first} " in current_writer(tmp_path)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert current_writer(tmp_path) is None
    with writer_lock(tmp_path):
        assert current_writer(tmp_path) is not None


def test_an_index_that_is_deleted_damaged_or_old_is_made_again(tmp_path):
    store(tmp_path, 4)
    rows, file = indexed(tmp_path).rows, tmp_path / "index.sqlite"
    assert [one.step for one in rows] == [1, 2, 3, 4] and rows == indexed(tmp_path).rows
    assert rows[3].state_bytes == 512 and rows[3].added_bytes < rows[3].stored_bytes and rows[3].full and not rows[2].full
    whole = file.read_bytes()
    for at in range(0, len(whole), 301):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert indexed(tmp_path).rows == rows, f"byte {at} flipped"
    for content in (b"", b"\x80\x04K\x01.", whole[:5000], whole[:-3000] + b"\0" * 3000):
        file.write_bytes(content)
        assert indexed(tmp_path).rows == rows
    file.unlink()
    assert indexed(tmp_path).rows == rows
    list_snapshots(tmp_path)[0].path.unlink()
    assert [one.step for one in indexed(tmp_path).rows] == [2, 3, 4]
