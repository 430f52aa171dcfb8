"""Killed at any file operation of saving, collecting, sending and telling: the newest complete snapshot loads, and nothing else is lost."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from faults import deaths
from small_store import SmallStore

from penstock.store import LocalFolder, Policy, collect, find_snapshot, list_snapshots, pin, read_history, read_manifest, transfer, verify_run
from penstock.store.cells.reading import read_content
from penstock.store.snapshots.retention import read_pins
from penstock.store.story.history import append_event


@pytest.fixture
def ram(tmp_path):
    """A folder in memory, where flushing is free, if there is one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


POWER = pytest.mark.parametrize("power", [False, True], ids=["process", "machine"])


def store(path, steps=(1, 2, 3, 4)):
    made = SmallStore(path)
    for step in steps:
        made.save(step)
    return made


def loads(snapshot):
    """The snapshot's content is that of its step."""
    manifest = read_manifest(snapshot)
    content = read_content(snapshot.folder, manifest.chunks, manifest.tensors["w"].cells[0])
    return torch.equal(content, SmallStore(snapshot.folder.path).weights(snapshot.step))


def steps(folder):
    return [snapshot["step"] for snapshot in verify_run(LocalFolder(folder)).intact]


def files(folder):
    return LocalFolder(folder).names("snapshots") + LocalFolder(folder).names("packs")


@pytest.mark.slow
@POWER
def test_a_save_that_dies_anywhere_leaves_earlier_snapshots_and_nothing_half(ram, power):
    made = store(ram / "run")

    def save(folder):
        again = SmallStore(folder)
        again.manifests = list(made.manifests)
        again.save(5)

    for folder, where in deaths(made.path, ram, save, power):
        found = verify_run(LocalFolder(folder))
        assert not found.damage, (where, found.damage)
        assert steps(folder) in ([1, 2, 3, 4], [1, 2, 3, 4, 5]), where
        assert loads(list_snapshots(folder)[-1]), where
        collect(folder, Policy(keep=0))
        if len(list_snapshots(folder)) == 4:
            save(folder)
        append_event(folder, "resume", "went on")
        found = verify_run(LocalFolder(folder))
        assert not found.damage and not found.notes and steps(folder) == [1, 2, 3, 4, 5], where


@pytest.mark.slow
@POWER
def test_a_collection_that_dies_anywhere_loses_nothing_in_use_and_the_next_one_ends_it(ram, power):
    made = store(ram / "run", range(1, 9))
    pin(find_snapshot(f"{made.path}@2"))

    def gc(folder):
        collect(folder, Policy(keep=2))

    for folder, where in deaths(made.path, ram, gc, power):
        found = verify_run(LocalFolder(folder))
        assert not found.damage, (where, found.damage)
        assert {2, 7, 8} <= set(steps(folder)), where
        gc(folder)
        found = verify_run(LocalFolder(folder))
        assert not found.damage and not found.notes and steps(folder) == [2, 7, 8], where
        assert len(files(folder)) == 3 + 4, (where, files(folder))


@pytest.mark.slow
@POWER
def test_sending_that_dies_anywhere_leaves_a_store_of_complete_snapshots_and_goes_on(ram, power):
    made = store(ram / "run", (1, 2))
    (ram / "there").mkdir()
    known = (made.path / "history.jsonl").read_bytes()
    for folder, where in deaths(ram / "there", ram, lambda folder: transfer(made.folder, LocalFolder(folder)), power):
        found = verify_run(LocalFolder(folder))
        assert not found.damage, (where, found.damage)
        assert len(found.intact) == len(list_snapshots(folder)), where
        transfer(made.folder, LocalFolder(folder))
        assert steps(folder) == [1, 2] and (folder / "history.jsonl").read_bytes() == known, where
    assert not verify_run(made.folder).damage and not list(made.path.glob(".reading/*"))


@POWER
def test_telling_that_dies_anywhere_tears_at_most_the_line_that_was_not_told(ram, power):
    made = store(ram / "run", (1,))
    made.tell("note", "one more")
    for folder, where in deaths(made.path, ram, lambda folder: append_event(folder, "note", "the last words"), power):
        told = read_history(folder)
        assert not told.damage and len(told.events) in (2, 3), (where, told)
        append_event(folder, "note", "afterwards")
        told = read_history(folder)
        assert not told.damage and not told.torn and [event.text for event in told.events][1] == "one more", where
        assert told.events[-1].text == "afterwards" and told.events[-1].seq == len(told.events), where


def test_pinning_that_dies_anywhere_leaves_the_old_pins_or_the_new(ram):
    made = store(ram / "run", (1, 2))
    first, second = (manifest.id for manifest in made.manifests)
    pin(find_snapshot(f"{made.path}@1"))
    for folder, where in deaths(made.path, ram, lambda folder: pin(find_snapshot(f"{folder}@2"))):
        assert read_pins(folder) in ({first}, {first, second}), where
