"""Push and pull: nothing is sent twice, manifests come last, the receiving side is read back, and no other run is overwritten."""

import json
import shutil

import fsspec
import pytest
from small_store import SmallStore

from penstock.config import UserError
from penstock.store import LocalFolder, append_event, collect, list_snapshots, open_folder, transfer, verify_run, writer_lock
from penstock.store.places import locks
from penstock.store.snapshots.retention import Policy
from penstock.store.story.code import keep_diff

DIFF = b"--- a\n+++ b\n"


@pytest.fixture
def bucket():
    """An empty place in memory, by URL."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield open_folder("memory://bucket/runs/mine")
    system.store.clear()


@pytest.fixture
def made(tmp_path):
    """A run of four steps with its other files."""
    run = SmallStore(tmp_path / "run")
    run.tell("start", "began", 0)
    for step in range(1, 5):
        run.save(step)
    keep_diff(run.path, DIFF)
    for name in ("tokenizer/tokenizer.json", "metrics/train.jsonl"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text(name)
    (run.path / "index.sqlite.partial").write_text("debris")
    return run


def whole(folder):
    """Steps of the intact snapshots of an undamaged store."""
    found = verify_run(folder)
    assert not found.damage and not found.notes, found
    return [snapshot["step"] for snapshot in found.intact]


def test_a_run_goes_to_a_bucket_and_comes_back_whole_and_is_not_sent_twice(made, bucket, tmp_path):
    sent = transfer(made.folder, bucket)
    assert (sent.snapshots, sent.packs, sent.there_already, sent.damaged) == (4, 4, 0, []) and whole(bucket) == [1, 2, 3, 4]
    again = transfer(made.folder, bucket)
    assert (again.snapshots, again.packs, again.there_already) == (0, 0, 4)
    made.save(5)
    assert transfer(made.folder, bucket).packs == 1 and whole(bucket) == [1, 2, 3, 4, 5]
    back = open_folder(f"file://{tmp_path}/back")
    assert isinstance(back, LocalFolder) and transfer(bucket, back).snapshots == 5 and whole(back) == [1, 2, 3, 4, 5]
    for name in ("run.json", "history.jsonl", "history.head", "tokenizer/tokenizer.json", "metrics/train.jsonl", made.folder.names("code")[0]):
        assert back.read(name) == made.folder.read(name), name
    assert [snapshot.file for snapshot in list_snapshots(back)] == [snapshot.file for snapshot in list_snapshots(made.path)]
    assert not bucket.has("index.sqlite.partial")


def test_what_is_gone_or_was_left_half_is_sent_again(made, bucket, tmp_path):
    transfer(made.folder, bucket)
    back = LocalFolder(tmp_path / "back")
    transfer(bucket, back)
    lost = back.names("packs")[1]
    back.remove(lost)
    assert verify_run(back).damage
    assert transfer(bucket, back).packs == 1 and whole(back) == [1, 2, 3, 4], "a pack that is gone comes back"
    half = open_folder("memory://bucket/runs/half")
    half.write(lost, b"\0" * made.folder.size(lost))
    assert transfer(made.folder, half).damaged == [] and whole(half) == [1, 2, 3, 4], "what another attempt left there is not believed"


def test_a_damaged_snapshot_is_not_passed_on_and_is_sent_when_it_is_mended(made, bucket):
    pack = made.path / made.folder.names("packs")[2]
    good = pack.read_bytes()
    pack.write_bytes(good[:20] + bytes(byte ^ 0x10 for byte in good[20:50]) + good[50:])
    sent = transfer(made.folder, bucket)
    assert sent.snapshots == 3 and len(sent.damaged) == 1 and "step 3" in sent.damaged[0] and pack.name in sent.damaged[0]
    assert [snapshot["step"] for snapshot in verify_run(bucket).intact] == [1, 2, 4]
    pack.unlink()
    assert "pack is missing" in transfer(made.folder, bucket).damaged[0]
    pack.write_bytes(good)
    assert transfer(made.folder, bucket).snapshots == 1 and whole(bucket) == [1, 2, 3, 4]


@pytest.mark.parametrize("at", range(0, 16, 3))
def test_an_upload_that_dies_anywhere_leaves_complete_snapshots_and_goes_on(made, bucket, monkeypatch, at):
    from fsspec.implementations.memory import MemoryFile

    real, calls = MemoryFile.commit, []

    def commit(self):
        calls.append(self.path)
        if len(calls) > at:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFile, "commit", commit)
        try:
            transfer(made.folder, bucket)
        except KeyboardInterrupt:
            found = verify_run(bucket)
            assert not found.damage and len(found.intact) == found.snapshots
            assert not any(name.endswith(".json") and at < 4 for name in bucket.names("snapshots"))
    transfer(made.folder, bucket)
    assert whole(bucket) == [1, 2, 3, 4]


def test_another_run_or_one_that_is_further_on_or_being_written_is_not_overwritten(made, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WRITER_WAIT_S", 0.1)
    transfer(made.folder, bucket)
    older = LocalFolder(shutil.copytree(made.path, tmp_path / "older"))
    made.tell("note", "more")
    transfer(made.folder, bucket)
    with pytest.raises(UserError, match="is further on than"):
        transfer(older, bucket)
    append_event(older.path, "note", "otherwise")
    with pytest.raises(UserError, match="went on in another way"):
        transfer(older, bucket)
    other = SmallStore(tmp_path / "other")
    (other.path / "run.json").write_text(json.dumps({"run": "other", "created": "2025"}))
    with pytest.raises(UserError, match="holds another run"):
        transfer(other.folder, open_folder(str(older.path)))
    with writer_lock(made.path), pytest.raises(UserError, match="being written by process"):
        transfer(bucket, made.folder)
    with pytest.raises(UserError, match="has no run"):
        transfer(LocalFolder(tmp_path / "nothing"), bucket)


def test_nothing_is_removed_while_it_is_sent(made, bucket, monkeypatch):
    real = type(bucket).create

    def create(self, name):
        collect(made.path, Policy(keep=1))
        return real(self, name)

    monkeypatch.setattr(type(bucket), "create", create)
    assert transfer(made.folder, bucket).snapshots == 4 and whole(bucket) == [1, 2, 3, 4]


def test_urls_that_cannot_be_opened_say_why(bucket, monkeypatch):
    with pytest.raises(UserError, match=r"library that is not installed: pip install 'penstock\[s3\]'"):
        monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
        open_folder("s3://bucket/run")
    with pytest.raises(UserError, match="not a URL that fsspec opens"):
        open_folder("gopher://hole/run")
    with pytest.raises(UserError, match="not a name inside"):
        bucket.read("../other/run.json")
    with pytest.raises(FileNotFoundError):
        bucket.read("run.json")

    def broken(*_, **__):
        raise RuntimeError("the bucket is on fire")

    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", broken)
    with pytest.raises(UserError, match=r"reading run\.json of memory://bucket/runs/mine failed: the bucket is on fire"):
        bucket.read("run.json")
