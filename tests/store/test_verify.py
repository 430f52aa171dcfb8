"""Verifying: every damage is named by file, with what it takes with it and what still loads; nothing of a damaged file is ever executed."""

import os
import pickle
import shutil
import subprocess

import pytest
import torch
from small_store import SmallStore

from penstock.config import UserError
from penstock.store import Damaged, LocalFolder, Policy, collect, indexed, list_snapshots, pin, read_history, read_manifest, run_timeline, verify_run
from penstock.store.cells.reading import read_content


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store of steps 1 to 6: 1 and 4 in full, the others increments."""
    made = SmallStore(tmp_path_factory.mktemp("whole") / "run")
    made.tell("start", "began", 0)
    for step in range(1, 7):
        made.save(step)
    return made


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole.path, tmp_path / "run")


def intact(found):
    return [snapshot["step"] for snapshot in found.intact]


def loads(run, step, numbers=64):
    """Whether the snapshot of a step gives what was saved."""
    manifest = read_manifest(next(snapshot for snapshot in list_snapshots(run) if snapshot.step == step))
    content = read_content(LocalFolder(run), manifest.chunks, manifest.tensors["w"].cells[0])
    return torch.equal(content, SmallStore(run, numbers).weights(step))


def pack_of(run, step):
    return next((run / "packs").glob(f"step-{step:08d}-*"))


def flip(file, at, count=1):
    content = bytearray(file.read_bytes())
    for place in range(at, at + count):
        content[place] ^= 0x10
    file.write_bytes(content)


def test_a_store_as_it_was_written_is_said_to_be_so(run):
    found = verify_run(LocalFolder(run))
    assert found.as_dict() | {"bytes": 0} == {
        "damaged": False, "newest_intact": {"id": read_manifest(list_snapshots(run)[-1]).id, "step": 6}, "snapshots": 6, "intact": found.intact,
        "damage": [], "notes": [], "events": 7, "chunks": 7, "bytes": 0,
    }  # fmt: skip
    assert intact(found) == [1, 2, 3, 4, 5, 6]


def test_a_bit_flipped_in_a_chunk_takes_its_increments_with_it_and_no_others(run):
    pack = pack_of(run, 2)
    flip(pack, 25, 20)
    found = verify_run(LocalFolder(run))
    assert [(damage.file, damage.steps) for damage in found.damage] == [(f"packs/{pack.name}", [2, 3])]
    assert intact(found) == [1, 4, 5, 6] and found.as_dict()["newest_intact"]["step"] == 6
    with pytest.raises(Damaged, match=pack.name):
        loads(run, 3)
    assert all(loads(run, step) for step in (1, 4, 5, 6))


def test_a_bit_flipped_anywhere_in_a_pack_is_found(run):
    pack = pack_of(run, 6)
    content = pack.read_bytes()
    for at in range(0, len(content), 5):
        flip(pack, at)
        found = verify_run(LocalFolder(run))
        assert [damage.file for damage in found.damage] == [f"packs/{pack.name}"], f"byte {at} of {len(content)}"
        assert set(intact(found)) >= {1, 2, 3, 4, 5}
        pack.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "remove", "empty", "directory"])
def test_a_torn_or_missing_pack_is_named_and_older_snapshots_load(run, damage):
    pack = pack_of(run, 4)
    if damage == "cut":
        pack.write_bytes(pack.read_bytes()[:20])
    elif damage == "empty":
        pack.write_bytes(b"")
    else:
        pack.unlink()
    if damage == "directory":
        pack.mkdir()
    found = verify_run(LocalFolder(run))
    assert {damage.file for damage in found.damage} == {f"packs/{pack.name}"} and intact(found) == [1, 2, 3]
    assert found.damage[0].steps == [4, 5, 6] and loads(run, 3)


def test_a_half_written_manifest_is_named_and_the_one_before_is_the_newest(run):
    newest = list_snapshots(run)[-1]
    newest.path.write_bytes(newest.path.read_bytes()[:100])
    found = verify_run(LocalFolder(run))
    assert [(damage.file, damage.steps) for damage in found.damage] == [(newest.file, [6])] and intact(found)[-1] == 5
    assert indexed(run).rows[-1].step == 5 and newest.file in indexed(run).damaged


def test_a_manifest_that_is_gone_and_was_not_dropped_is_missed(run):
    list_snapshots(run)[1].path.unlink()
    found = verify_run(LocalFolder(run))
    assert [damage.what for damage in found.damage] == ["the snapshot of step 2 is gone, and the history does not say that it was dropped"]
    assert intact(found) == [1, 3, 4, 5, 6]
    assert [entry.snapshot.state for entry in run_timeline(run).entries if entry.snapshot] == ["here", "lost", "here", "here", "here", "here"]


def test_what_is_only_unusual_is_noted(run):
    (run / "packs" / "stranger.pack").write_bytes(b"12345")
    (run / "snapshots" / "notes.txt").write_text("mine")
    with open(run / "history.jsonl", "ab") as file:
        file.write(b'{"seq"')
    found = verify_run(LocalFolder(run))
    assert not found.damage and len(found.notes) == 3
    assert "6 bytes of a line" in " ".join(found.notes)
    assert "1 files in packs/ that no snapshot needs, 5 bytes" in " ".join(found.notes)


def test_damaged_files_of_the_run_and_pins_of_what_is_gone_are_named(run):
    first = list_snapshots(run)[0]
    pin(first)
    (run / "run.json").write_text("{")
    (run / "config.toml").write_text("= 3")
    assert [damage.file for damage in verify_run(LocalFolder(run)).damage] == ["run.json", "config.toml"]
    first.path.unlink()
    assert "pins.json" in [damage.file for damage in verify_run(LocalFolder(run)).damage]


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


FILES = ["snapshots", "packs", "history.jsonl", "history.head", "index.sqlite", "pins.json", "run.json", "config.toml", "summary.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_place_of_any_file_is_never_executed_and_named(run, tmp_path, name):
    canary = tmp_path / "executed"
    indexed(run)
    file = run / name
    file = max(file.iterdir()) if file.is_dir() else file
    file.write_bytes(pickle.dumps(Bomb(canary)))
    found = verify_run(LocalFolder(run))
    assert len(indexed(run).rows) >= 5 and len(list_snapshots(run)) == 6
    read_history(run)
    for action in (lambda: collect(run, Policy(keep=0)), lambda: run_timeline(run)):
        if name == "pins.json":
            with pytest.raises(UserError, match="damaged"):
                action()
        else:
            action()
    assert not canary.exists()
    expected = {"index.sqlite": set(), "history.head": {"history.jsonl"}}.get(name, {str(file.relative_to(run))})
    assert {damage.file for damage in found.damage} == expected
    assert intact(found)[:5] == [1, 2, 3, 4, 5]


def test_a_run_copied_while_it_is_written_has_complete_snapshots_and_says_what_it_lacks(whole, tmp_path):
    source = SmallStore(shutil.copytree(whole.path, tmp_path / "source"))
    source.manifests = list(whole.manifests)
    copy = tmp_path / "copy"
    shutil.copytree(source.path / "packs", copy / "packs")
    source.save(7)
    for name in ("snapshots", "history.jsonl"):
        (shutil.copytree if name == "snapshots" else shutil.copy)(source.path / name, copy / name)
    source.tell("note", "later")
    shutil.copy(source.path / "history.head", copy / "history.head")
    found = verify_run(LocalFolder(copy))
    assert intact(found) == [1, 2, 3, 4, 5, 6] and loads(copy, 6)
    assert any("is missing" in damage.what and damage.steps == [7] for damage in found.damage)
    assert any("lost its last 1 lines" in damage.what for damage in found.damage) and len(found.damage) == 2


def test_a_full_disk_and_one_that_cannot_be_written_to(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        made = SmallStore(disk, numbers=1000)
        for step in range(1, 5):
            made.save(step)
        with open(disk / "ballast", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"\1" * 512)
        with pytest.raises(UserError, match=r"disk of .* is full while writing (packs|snapshots)"):
            made.save(5)
        with pytest.raises(UserError, match=r"disk of .* is full while writing history"):
            for _ in range(20):
                made.tell("note", "x" * 400)
        found = verify_run(made.folder)
        assert not found.damage and intact(found) == [1, 2, 3, 4] and loads(disk, 4, 1000)
        assert [row.step for row in collect(disk, Policy(keep=1)).dropped] == [1, 2, 3], "a full disk can be freed"
        assert not verify_run(made.folder).damage and read_history(disk).events[-1].kind == "gc"
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        (rows,) = indexed(disk).rows
        assert rows.step == 4 and loads(disk, 4, 1000) and not verify_run(made.folder).damage and run_timeline(disk).entries
        for change in (lambda: made.save(6), lambda: made.tell("note", "x"), lambda: collect(disk, Policy(keep=1)), lambda: pin(list_snapshots(disk)[0])):
            with pytest.raises(UserError, match=r"cannot write to .*: Read-only file system; choose a folder you may write to"):
                change()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
