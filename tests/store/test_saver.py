"""Snapshots beside training: what was copied is what is stored, failures harm nothing, memory and waiting are bounded."""

import threading
import time
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import run_ranks

import penstock.store.cells.grid as grids
from penstock.comm import World
from penstock.parallel import Layout, Placement, Split
from penstock.store import Increments, LocalFolder, Saver, list_snapshots, load_snapshot, read_manifest
from penstock.store.cells import cell_writer
from penstock.store.snapshots import attempt, saver, staging

PLAIN = Layout()


class Disk(LocalFolder):
    """A folder whose writes of packs are slow, or refused as often as is said, and are counted."""

    def __init__(self, path, slow_s=0.0):
        super().__init__(path)
        self.slow_s, self.refuse, self.packs = slow_s, 0, 0

    @contextmanager
    def create(self, name):
        if name.startswith("packs/"):
            self.packs += 1
            time.sleep(self.slow_s)
        with super().create(name) as stream:
            yield stream
            if name.startswith("packs/") and self.refuse:
                self.refuse -= 1
                raise OSError(5, "Input/output error")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(attempt, "PAUSES", (0.01, 0.01))


@pytest.fixture
def small_cells(monkeypatch):
    monkeypatch.setattr(grids, "CELL", 40)


def some_state(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"model.a": torch.randn(9, 8, generator=g), "optim.a": torch.randn(9, 8, generator=g), "model.b": torch.randn(5, generator=g).bfloat16()}


def save(writer, step, state, **more):
    writer.save(step, state, {}, PLAIN, {"step": step}, {}, **more)


def loaded(snapshot, like):
    found = {name: torch.full_like(tensor, 9) for name, tensor in like.items()}
    assert load_snapshot(snapshot, found) == {"step": snapshot.step}
    return found


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def depth(manifest):
    """The longest chain of increments."""
    def of(digest):
        base = manifest.chunks[digest].base
        return 0 if base is None else 1 + of(base)

    return max(map(of, manifest.chunks))


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_snapshot_of_a_sequence_loads_bit_for_bit(tmp_path, small_cells, data):
    """Numbers change, come back, stay; a process ends and another goes on; all of it in few increments and every content once."""
    folder = LocalFolder(tmp_path / str(time.perf_counter_ns()))
    increments = Increments(data.draw(st.sampled_from(["lossless", "bounded", "off"])), data.draw(st.integers(0, 3)))
    states, variants = {}, [some_state(seed) for seed in range(3)]
    writer = Saver(folder, World(), increments)
    state = dict(some_state())
    for step in range(1, data.draw(st.integers(2, 6))):
        for name in state:
            state[name] = data.draw(st.sampled_from([state[name], *(variant[name] for variant in variants), torch.zeros_like(state[name])]))
        if data.draw(st.integers(0, 3)) == 0:
            writer.wait()
            writer.close()
            writer = Saver(folder, World(), increments, read_manifest(list_snapshots(folder)[-1]) if step > 1 else None)
        exact = data.draw(st.booleans())
        save(writer, step, {name: tensor.clone() for name, tensor in state.items()}, exact=exact)
        states[step] = dict(state), exact or increments.kind != "bounded"
    writer.wait()
    writer.close()
    snapshots = list_snapshots(folder)
    assert [snapshot.step for snapshot in snapshots] == list(states)
    for before, snapshot in zip([None, *snapshots], snapshots):
        manifest, (expected, exact) = read_manifest(snapshot), states[snapshot.step]
        assert manifest.parent == (read_manifest(before).id if before else None)
        assert depth(manifest) <= (0 if increments.kind == "off" else min(increments.chain, 1)), "increments are of full ones"
        found = loaded(snapshot, expected)
        assert same(found, expected) if exact else all(torch.allclose(found[name].float(), expected[name].float(), atol=0.5) for name in found)


@pytest.mark.slow
def test_training_goes_on_while_a_slow_disk_writes_and_waits_only_for_the_next_snapshot(tmp_path, monkeypatch):
    rooms = []
    made = staging.Staging.room
    monkeypatch.setattr(staging.Staging, "room", lambda self: rooms.append(made(self)) or rooms[-1])
    folder, state, expected = Disk(tmp_path, slow_s=1.0), some_state(), []
    writer = Saver(folder, World())
    writer.prepare(state, {}, PLAIN)
    writer.wait()
    for step in range(1, 6):
        began = time.perf_counter()
        waited = writer.save(step, state, {}, PLAIN, {"step": step}, {})
        took = time.perf_counter() - began
        expected.append({name: tensor.clone() for name, tensor in state.items()})
        assert waited < 0.5 if step == 1 else 0.2 < waited <= took, "it waits for the snapshot before, and says how long"
        assert took - waited < 0.5, "not for its own"
        for tensor in state.values():
            tensor.add_(1)
    assert writer.wait() > 0.2
    assert len(rooms) == 2, "one copy on its way, and one that increments are made against"
    for snapshot, wanted in zip(list_snapshots(folder), expected):
        assert same(loaded(snapshot, wanted), wanted), "what was copied, not what the tensors became meanwhile"
    assert [(outcome.step, outcome.failure) for outcome in writer.outcomes()] == [(step, "") for step in range(1, 6)]


def test_a_disk_that_refuses_once_is_asked_again_and_one_that_always_does_costs_that_snapshot_alone(tmp_path):
    folder = Disk(tmp_path)
    writer = Saver(folder, World())
    for step, refuse in ((1, 0), (2, 1), (3, 3), (4, 0)):
        folder.refuse = refuse
        save(writer, step, some_state(step))
        writer.wait()
    outcomes = {outcome.step: outcome for outcome in writer.outcomes()}
    assert folder.packs == 1 + 2 + 3 + 1
    assert [step for step, outcome in outcomes.items() if outcome.snapshot] == [1, 2, 4] and "Input/output error" in outcomes[3].failure
    assert [snapshot.step for snapshot in list_snapshots(folder)] == [1, 2, 4]
    assert len(list((tmp_path / "packs").iterdir())) == 3, "nothing is left of the snapshot that was given up"
    for snapshot in list_snapshots(folder):
        assert same(loaded(snapshot, some_state()), some_state(snapshot.step))
    parents = {m.step: m.parent for m in map(read_manifest, list_snapshots(folder))}
    assert parents[4] == read_manifest(list_snapshots(folder)[1]).id


def test_a_snapshot_whose_parents_packs_are_gone_is_given_up_and_the_next_needs_them_no_longer(tmp_path):
    writer = Saver(LocalFolder(tmp_path), World())
    save(writer, 1, some_state(1))
    writer.wait()
    for file in (tmp_path / "packs").iterdir():
        file.unlink()
    for step in (2, 3):
        save(writer, step, {name: tensor * (1 + step / 2**20) for name, tensor in some_state(1).items()})
    writer.wait()
    assert ["is missing" in outcome.failure for outcome in writer.outcomes()] == [False, True, False]
    assert same(loaded(list_snapshots(tmp_path)[-1], some_state()), {name: tensor * (1 + 3 / 2**20) for name, tensor in some_state(1).items()})


def test_what_cannot_be_written_by_our_own_fault_is_raised_where_training_is(tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise ValueError("no such codec")

    writer = Saver(LocalFolder(tmp_path), World())
    monkeypatch.setattr("penstock.store.cells.cell_writer.encode", broken)
    save(writer, 1, some_state())
    with pytest.raises(RuntimeError, match="rank 0: ValueError: no such codec"):
        writer.wait()
    with pytest.raises(RuntimeError, match="no such codec"):
        save(writer, 2, some_state())
    assert not list_snapshots(tmp_path)


def ends(world, folder):
    """What two ranks see of four snapshots: rank 1's disk refuses the second, is slow with the third; the fourth has another layout."""
    attempt.PAUSES, attempt.TELL_S, grids.CELL = (0.01, 0.01), 0.0, 40
    disk, layout = Disk(folder), Layout(shard=2)
    writer = Saver(disk, world)
    for step in (1, 2, 3, 4):
        writer.wait()
        disk.refuse = 3 if (step, world.rank) == (2, 1) else 0
        disk.slow_s = 0.3 if (step, world.rank) == (3, 1) else 0.0
        state = some_state(step)
        placements = {"model.a": Placement((9, 8), (Split(step % 2, ("shard",)),)), "optim.a": Placement((9, 8), (Split(0, ("shard",)),))}
        mine = {name: tensor[placements[name].boxes(layout, world.rank)[0].slices].clone() if name in placements else tensor for name, tensor in state.items()}
        writer.save(step, mine, placements, layout, {"step": step}, {})
        for tensor in mine.values():
            tensor.zero_()
        world.barrier()
    writer.wait()
    threads = [thread for thread in threading.enumerate() if thread.name == "penstock-saver"]
    return [(outcome.step, outcome.failure, outcome.snapshot and outcome.snapshot.file) for outcome in writer.outcomes()], len(threads)


@pytest.mark.slow
def test_a_rank_whose_disk_fails_costs_that_snapshot_alone_and_all_ranks_know(tmp_path, small_cells):
    (first, threads), second = run_ranks(ends, 2, tmp_path)
    assert first == second[0] and threads == 1
    assert [step for step, _, file in first if file] == [1, 3, 4] and first[1][1] == "rank 1: [Errno 5] Input/output error"
    for snapshot in list_snapshots(tmp_path):
        assert same(loaded(snapshot, some_state()), some_state(snapshot.step))
    packs = {pack for snapshot in list_snapshots(tmp_path) for pack in read_manifest(snapshot).packs}
    assert {file.name for file in (tmp_path / "packs").iterdir()} == packs, "nothing is left of the one that was given up"


def swap(world, folder):
    """Two ranks have a tensor each; the first's becomes what the second's is, and then again what it was."""
    writer = Saver(LocalFolder(folder), world)
    one, other = torch.arange(1.0, 1001.0), torch.arange(1.0, 1001.0) * (1 + 2**-20)
    for step, first in ((1, one), (2, other), (3, one)):
        writer.save(step, {"a": first, "b": other}, {}, Layout(replicate=2), {"step": step}, {})
        writer.wait()
    return [outcome.failure for outcome in writer.outcomes()]


def test_what_another_rank_has_written_already_is_no_base_to_rely_on(tmp_path):
    assert run_ranks(swap, 2, tmp_path) == [[""] * 3] * 2
    assert torch.equal(loaded(list_snapshots(tmp_path)[-1], {"a": torch.zeros(1000), "b": torch.zeros(1000)})["a"], torch.arange(1.0, 1001.0))


def test_a_manifest_that_is_there_counts_though_the_disk_would_not_flush_its_folder(tmp_path, monkeypatch):
    def refused(folder, manifest):
        made(folder, manifest)
        raise OSError(5, "Input/output error")

    made = saver.write_manifest
    monkeypatch.setattr(saver, "write_manifest", refused)
    writer = Saver(LocalFolder(tmp_path), World())
    save(writer, 1, some_state())
    writer.wait()
    (outcome,) = writer.outcomes()
    assert outcome.snapshot == list_snapshots(tmp_path)[0] and "perhaps not safe" in outcome.warnings[0]
    assert same(loaded(outcome.snapshot, some_state()), some_state())


def at_fault(world, folder):
    if world.rank == 1:
        cell_writer.encode = None
    writer = Saver(LocalFolder(folder), world)
    writer.save(1, some_state(), {}, Layout(replicate=2), {}, {})
    try:
        writer.wait()
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_a_rank_at_fault_keeps_no_other_waiting(tmp_path):
    said = run_ranks(at_fault, 2, tmp_path)
    assert all("rank 1: TypeError" in text for text in said)
