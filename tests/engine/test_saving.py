"""Snapshots of whole runs: what they know, that a refusing disk or a damaged one costs little, and who may write a run."""

import errno
from contextlib import contextmanager

import pytest
from small_runs import small_config

from penstock.config import UserError
from penstock.engine import resume_run, start_run
from penstock.monitor import MetricStore
from penstock.store import LocalFolder, Run, find_run, list_snapshots, read_history, read_manifest, writer_lock
from penstock.store.snapshots import attempt


def train(tmp_path, name, **changes):
    changes = {"snapshot__keep": 0, "eval__sample_tokens": 0, "metrics__tensorboard": False} | changes
    return start_run(small_config(tmp_path, **changes), "test", "test", 1, tmp_path / name, None)


def told(run):
    return [(event.kind, event.step) for event in read_history(run.path).events]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(folder, "whole"), folder


@pytest.mark.slow
def test_a_snapshot_knows_what_made_it_and_the_history_what_happened(whole):
    result, _ = whole
    run = find_run(result["run"])
    first, second, third = map(read_manifest, list_snapshots(run.folder))
    assert (first.parent, second.parent, third.parent) == (None, first.id, second.id)
    about = third.about
    assert about["config"] == run.config().tree() and about["layout"]["ranks"] == 1 and about["environment"] == run.read("run.json")["environment"]
    assert about["data"] == {"digest": run.read("run.json")["data_digest"], "seed": run.config().run.seed, "step": 6}
    rows = {row["step"]: row for row in MetricStore(run.path / "metrics").read("train")}
    assert about["metrics"].pop("tokens_per_s") > 0
    assert about["metrics"] == {"loss": rows[6]["loss"], "val_loss": result["val_loss"], "tokens": result["tokens"]}
    assert "val_loss" not in second.about["metrics"] and second.about["metrics"]["loss"] == rows[4]["loss"]
    assert any(entry.base for entry in second.chunks.values()), "the second is stored as what changed"
    assert told(run) == [("start", 0), ("snapshot", 2), ("snapshot", 4), ("snapshot", 6)]
    assert {"snapshot_wait_s", "snapshot_stall_s"} <= rows[3].keys() and "snapshot_stall_s" not in rows[4]


@pytest.mark.slow
def test_a_run_goes_on_past_a_snapshot_that_the_disk_refused_and_past_damage(tmp_path, monkeypatch, whole, capsys):
    """Step 2 cannot be written; step 4 is written, and damaged later; step 6 cannot be written, which ends the run. What is left over is removed."""
    monkeypatch.setattr(attempt, "PAUSES", (0.01, 0.01))
    refused = {2, 6}
    create = LocalFolder.create

    @contextmanager
    def sometimes(self, name):
        with create(self, name) as stream:
            yield stream
            if any(name.startswith(f"packs/step-{step:08d}") for step in refused):
                raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(LocalFolder, "create", sometimes)
    with pytest.raises(UserError, match=r"step 6 could not be saved: \[Errno 5\] Input/output error; the last good snapshot is step 4"):
        train(tmp_path, "r", snapshot__every=2)
    run = Run(tmp_path / "r")
    assert "warning: step 2 could not be saved" in capsys.readouterr().err
    assert [snapshot.step for snapshot in list_snapshots(run.folder)] == [4] and run.read("summary.json")["state"] == "failed"
    refused.clear()
    (run.path / "packs" / "step-00000006-rank-00000-0.pack").write_bytes(b"left over")
    (run.path / "packs" / "step-00000007-rank-00000-0.pack.partial").write_bytes(b"left over")
    assert resume_run(run, {"train.steps": 5}, 1, None)["step"] == 5
    newest = list_snapshots(run.folder)[-1]
    pack = run.path / "packs" / next(entry.pack for entry in read_manifest(newest).chunks.values() if "step-00000005" in entry.pack)
    content = bytearray(pack.read_bytes())
    content[len(content) // 3] ^= 1
    pack.write_bytes(content)
    resumed = resume_run(run, {"train.steps": 6}, 1, None)
    assert resumed["weights_digest"] == whole[0]["weights_digest"], "as if nothing had happened"
    assert f"packs/{pack.name} in {run.path} is damaged" in (said := capsys.readouterr().err) and "going on from step 4 instead" in said
    assert [row["step"] for row in MetricStore(run.path / "metrics").read("train")] == [1, 2, 3, 4, 5, 6]
    kinds = [kind for kind, _ in told(run)]
    assert kinds.index("alert") < kinds.index("failure"), "told when it is noticed, which may be after the snapshot that came next"
    kinds.remove("alert")
    assert kinds == ["start", "snapshot", "failure", "change", "resume", "snapshot", "change", "resume", "snapshot"]
    assert not [name for name in LocalFolder(run.path).names("packs") if "0000000" not in name or name.endswith(".partial") or "-0.pack" in name]


def test_a_run_is_written_by_one_process_at_a_time(whole):
    run = find_run(whole[0]["run"])
    before = (run.path / "config.toml").read_bytes()
    with writer_lock(run.path), pytest.raises(UserError, match="is being written by process"):
        resume_run(run, {"train.steps": 8}, 1, None)
    assert (run.path / "config.toml").read_bytes() == before


@pytest.mark.slow
def test_snapshots_with_bounded_error_resume_close_by_and_the_last_one_is_exact(tmp_path, whole):
    result = train(tmp_path, "bounded", snapshot__increments="bounded", snapshot__every=1)
    assert result["weights_digest"] == whole[0]["weights_digest"]
    run = find_run(result["run"])
    assert resume_run(run, {}, 1, None)["weights_digest"] == result["weights_digest"], "the last one is exact"
    list_snapshots(run.folder)[-1].path.unlink()
    resumed = resume_run(run, {}, 1, None)
    assert resumed["val_loss"] == pytest.approx(result["val_loss"], rel=1e-3)
