"""Runs and snapshots: whole or not there, verified, never unpickled."""

import os
import subprocess
import sys

import pytest
import torch
from ranks import run_ranks

from penstock.comm import World
from penstock.config import UserError, load_config
from penstock.store import create_run, find_run, list_runs, list_snapshots, load_snapshot, new_run_folder, read_numbers, save_snapshot


def some_state(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "model.a": torch.randn(3, 4, generator=g),
        "model.odd": torch.randn(1, 5, 2, generator=g),
        "optim.a.step": torch.tensor(7.0),
        "model.b": torch.randn(6, generator=g).bfloat16(),
        "model.bias_e": torch.randn(4, generator=g).double(),
    }


def zeros_like(state):
    return {name: torch.zeros_like(t) for name, t in state.items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_a_snapshot_gives_back_every_bit(tmp_path):
    state = some_state()
    saved = save_snapshot(tmp_path, 12, state, {"step": 12, "tokens": 99}, World())
    loaded = zeros_like(state)
    assert load_snapshot(saved, loaded) == {"step": 12, "tokens": 99}
    assert same(loaded, state)


def test_the_newest_snapshots_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save_snapshot(tmp_path, step, some_state(step), {}, World(), keep=2)
    assert [s.step for s in list_snapshots(tmp_path)] == [10, 11]
    assert not list(tmp_path.glob(".partial*"))


def test_no_file_of_a_snapshot_is_a_pickle(tmp_path):
    saved = save_snapshot(tmp_path, 1, some_state(), {"step": 1}, World())
    assert {f.suffix for f in saved.path.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_snapshot_is_named_and_the_older_one_offered(tmp_path, damage):
    save_snapshot(tmp_path, 1, some_state(), {}, World())
    saved = save_snapshot(tmp_path, 2, some_state(), {}, World())
    file = next(saved.path.glob("*.safetensors")) if damage != "manifest" else saved.path / "snapshot.json"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage in ("cut", "manifest"):
        file.write_bytes(content[:-9])
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"damaged.*goes on from step 1"):
        load_snapshot(saved, zeros_like(some_state()))


def test_a_state_of_another_shape_is_refused_by_name(tmp_path):
    saved = save_snapshot(tmp_path, 1, some_state(), {}, World())
    other = some_state() | {"model.a": torch.zeros(3, 5)}
    with pytest.raises(UserError, match=r"model\.a is \(3, 4\) there and \(3, 5\) here"):
        load_snapshot(saved, other)
    missing = {k: v for k, v in some_state().items() if k != "model.b"}
    with pytest.raises(UserError, match=r"model\.b is \(6,\) there and nothing here"):
        load_snapshot(saved, missing)


def save_together(world, folder):
    saved = save_snapshot(folder, 3, some_state(), {"step": 3}, world)
    return sorted(f.name for f in saved.path.glob("*.safetensors"))


def test_two_ranks_write_one_snapshot_that_one_process_reads(tmp_path):
    files, also = run_ranks(save_together, 2, tmp_path)
    assert files == also and len(files) == 2, "replicas share the writing"
    loaded = zeros_like(some_state())
    assert load_snapshot(list_snapshots(tmp_path)[0], loaded) == {"step": 3}
    assert same(loaded, some_state())


def fail_on_rank_one(world, folder):
    import penstock.store.snapshots as snapshots

    if world.rank == 1:
        def broken(partial, tensors, world):
            raise UserError("the disk of rank 1 is full")

        real = snapshots._write_files
        snapshots._write_files = lambda *args: (real(*args), broken(*args))
    try:
        save_snapshot(folder, 5, some_state(), {}, world)
    except UserError as error:
        return str(error)
    return "no error"


def test_when_one_rank_cannot_write_all_ranks_stop_and_the_earlier_snapshot_stays(tmp_path):
    save_snapshot(tmp_path, 1, some_state(), {}, World())
    messages = run_ranks(fail_on_rank_one, 2, tmp_path)
    assert "last good snapshot is step 1" in messages[0] and "another rank" in messages[0]
    assert "rank 1 is full" in messages[1]
    assert [s.step for s in list_snapshots(tmp_path)] == [1]
    assert not list(tmp_path.glob(".partial*"))


def test_a_full_disk_while_saving_is_said_and_leaves_nothing_half_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        small, large = {"model.a": torch.zeros(1000)}, {"model.a": torch.zeros(200_000)}
        save_snapshot(disk, 1, small, {}, World())
        with pytest.raises(UserError, match=r"disk of .* is full while saving a snapshot.*last good snapshot is step 1"):
            save_snapshot(disk, 2, large, {}, World())
        assert [s.step for s in list_snapshots(disk)] == [1] and not list(disk.glob(".partial*"))
        assert load_snapshot(list_snapshots(disk)[0], {"model.a": torch.ones(1000)}) == {}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_process_killed_while_saving_leaves_the_earlier_snapshot_alone(tmp_path):
    script = """
import os, sys, torch, penstock.store.snapshots as s
from penstock.comm import World
folder = __import__("pathlib").Path(sys.argv[1])
s.save_snapshot(folder, 1, {"model.a": torch.ones(4)}, {"step": 1}, World())
s._publish = lambda *a: os.kill(os.getpid(), 9)
s.save_snapshot(folder, 2, {"model.a": torch.ones(4)}, {"step": 2}, World())
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True)
    assert done.returncode == -9
    assert [s.step for s in list_snapshots(tmp_path)] == [1]
    save_snapshot(tmp_path, 2, {"model.a": torch.ones(4)}, {"step": 2}, World())
    assert read_numbers(list_snapshots(tmp_path)[1]) == {"step": 2}


def test_runs_are_created_found_and_listed(tmp_path):
    config = load_config("tiny", [f"run.dir={tmp_path}"])
    first = create_run(config, new_run_folder(config, "my config"), {"command": "x"})
    assert first.name.startswith("my-config-") and first.config() == config
    second = create_run(config, new_run_folder(config, "my config"), {})
    assert second.path != first.path
    assert {r.name for r in list_runs(tmp_path)} == {first.name, second.name}
    assert find_run(first.name, tmp_path).path == first.path == find_run(first.path).path
    assert find_run("last", tmp_path).path in (first.path, second.path)
    with pytest.raises(UserError, match=f"did you mean '{first.name}'|did you mean '{second.name}'"):
        find_run(first.name[:-1], tmp_path)


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    config = load_config("tiny")
    run = create_run(config, tmp_path / "r", {})
    with pytest.raises(UserError, match="penstock resume"):
        create_run(config, run.path, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not an empty folder"):
        create_run(config, tmp_path / "full", {})
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"


def test_a_damaged_run_file_is_named(tmp_path):
    run = create_run(load_config("tiny"), tmp_path / "r", {})
    (run.path / "run.json").write_text('{"run": ')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        run.read("run.json")
