"""Runs and snapshots: whole or not there, verified, never unpickled."""

import os
import subprocess
import sys

import pytest
import torch
from ranks import run_ranks

from penstock.comm import World
from penstock.config import UserError, load_config
from penstock.store import (
    Damaged,
    check_format,
    create_run,
    find_run,
    list_runs,
    list_snapshots,
    load_snapshot,
    new_run_folder,
    read_manifest,
    read_numbers,
    save_snapshot,
)  # fmt: skip
from penstock.store.snapshots import attempt


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


def test_no_file_of_a_snapshot_is_a_pickle(tmp_path):
    save_snapshot(tmp_path, 1, some_state(), {"step": 1}, World())
    files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert {file.suffix for file in files} == {".pack", ".json"}
    assert all(b"torch" not in file.read_bytes() for file in files)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_snapshot_is_named_and_so_is_the_one_before_it(tmp_path, damage):
    save_snapshot(tmp_path, 1, some_state(), {}, World())
    saved = save_snapshot(tmp_path, 2, some_state(1), {}, World())
    entry = max((entry for entry in read_manifest(saved).chunks.values() if "step-00000002" in entry.pack), key=lambda entry: entry.size)
    file = tmp_path / "packs" / entry.pack if damage != "manifest" else saved.path
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[entry.offset + entry.size // 2] ^= 1
        file.write_bytes(content)
    elif damage in ("cut", "manifest"):
        file.write_bytes(content[: len(content) // 3])
    else:
        file.unlink()
    with pytest.raises(Damaged, match=r"damaged: .*; the one before it is of step 1"):
        load_snapshot(saved, zeros_like(some_state()))
    assert load_snapshot(list_snapshots(tmp_path)[0], zeros_like(some_state())) == {}


def test_a_state_of_another_shape_is_refused_by_name(tmp_path):
    saved = save_snapshot(tmp_path, 1, some_state(), {}, World())
    other = some_state() | {"model.a": torch.zeros(3, 5)}
    with pytest.raises(UserError, match=r"model\.a is \(3, 4\) there and \(3, 5\) here"):
        load_snapshot(saved, other)
    missing = {k: v for k, v in some_state().items() if k != "model.b"}
    with pytest.raises(UserError, match=r"model\.b is \(6,\) there and nothing here"):
        load_snapshot(saved, missing)


def save_together(world, folder):
    return read_manifest(save_snapshot(folder, 3, some_state(), {"step": 3}, world)).packs


def test_two_ranks_write_one_snapshot_that_one_process_reads(tmp_path):
    packs, also = run_ranks(save_together, 2, tmp_path)
    assert packs == also and len(packs) == 2, "replicas share the writing"
    loaded = zeros_like(some_state())
    assert load_snapshot(list_snapshots(tmp_path)[0], loaded) == {"step": 3}
    assert same(loaded, some_state())


def test_a_full_disk_while_saving_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    monkeypatch.setattr(attempt, "PAUSES", (0.01, 0.01))
    try:
        small, large = {"model.a": torch.zeros(1000)}, {"model.a": torch.randn(200_000)}
        save_snapshot(disk, 1, small, {}, World())
        with pytest.raises(UserError, match=r"disk of .* is full while writing packs/.*last good snapshot is step 1"):
            save_snapshot(disk, 2, large, {}, World())
        assert [s.step for s in list_snapshots(disk)] == [1] and len(list((disk / "packs").iterdir())) == 1
        assert load_snapshot(list_snapshots(disk)[0], {"model.a": torch.ones(1000)}) == {}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_the_earlier_snapshot_alone(tmp_path):
    script = """
import os, sys, torch, penstock.store.snapshots.saver as s
from penstock.comm import World
folder = __import__("pathlib").Path(sys.argv[1])
s.save_snapshot(folder, 1, {"model.a": torch.ones(4)}, {"step": 1}, World())
s.write_manifest = lambda *a: os.kill(os.getpid(), 9)
s.save_snapshot(folder, 2, {"model.a": torch.zeros(4)}, {"step": 2}, World())
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


def test_snapshots_of_the_format_before_are_refused_with_the_version_to_use(tmp_path):
    run = create_run(load_config("tiny"), tmp_path / "r", {"environment": {"penstock": "0.1.0"}})
    check_format(run)
    (run.path / "snapshots" / "step-00000100").mkdir()
    (run.path / "snapshots" / "step-00000100" / "snapshot.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match=r"have format 2, and this version of Penstock reads 3; use the version that wrote them, 0\.1\.0"):
        check_format(run)
