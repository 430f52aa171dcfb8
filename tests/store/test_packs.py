"""Packs and manifests: given back as written, whole or not there, and refused by name before anything is allocated or read elsewhere."""

import json
import os
import re
import resource

import blake3
import pytest
import torch
from small_store import SmallStore

from penstock.config import UserError
from penstock.store import ChunkEntry, Damaged, LocalFolder, PackWriter, chunk_digest, list_snapshots, read_chunk, read_manifest, read_pack
from penstock.store.canonical import canonical
from penstock.store.cells.reading import read_content
from penstock.store.snapshots.manifest import manifest_file


def test_chunks_and_manifests_are_given_back(tmp_path):
    made = SmallStore(tmp_path)
    saved = [made.save(step) for step in (1, 2, 3)]
    assert list_snapshots(tmp_path) == saved
    for snapshot, written in zip(saved, made.manifests):
        manifest = read_manifest(snapshot)
        assert manifest == written and manifest.id == written.id and snapshot.path.is_file()
        for name, expected in {"w": made.weights(snapshot.step), "still": torch.zeros(64)}.items():
            assert torch.equal(read_content(made.folder, manifest.chunks, manifest.tensors[name].cells[0]), expected)
        for pack in manifest.packs:
            listed = read_pack(made.folder, pack)
            assert {digest: entry for digest, entry in manifest.chunks.items() if entry.pack == pack}.items() <= listed.items()
    assert saved[2].id == read_manifest(saved[2]).id[:12] and read_manifest(saved[1]).parent == read_manifest(saved[0]).id


def test_equal_content_has_one_digest_and_a_dtype_makes_another():
    assert chunk_digest("float32", b"\0" * 8) == chunk_digest("float32", memoryview(bytearray(8)))
    assert len({chunk_digest(dtype, b"\0" * 8) for dtype in ("float32", "float64", "int32")}) == 3


def test_a_pack_that_ends_by_an_error_or_has_nothing_in_it_is_not_there(tmp_path):
    folder = LocalFolder(tmp_path)
    with PackWriter(folder, "empty.pack"):
        pass
    with pytest.raises(KeyError), PackWriter(folder, "half.pack") as pack:
        pack.add(chunk_digest("uint8", b"abc"), b"abc", "raw", None, "uint8", 3)
        raise KeyError
    assert folder.names("packs") == []
    with PackWriter(folder, "a.pack") as pack:
        first = pack.add("0" * 40, b"abc", "raw", None, "uint8", 3)
        assert pack.add("0" * 40, b"abc", "raw", None, "uint8", 3) is first
    assert read_pack(folder, "a.pack") == {"0" * 40: first} and read_chunk(folder, "0" * 40, first) == b"abc"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "./a", "a\\b", "c:x", "a\nb", "a\0b"])
def test_no_name_leads_out_of_a_folder(tmp_path, name):
    (tmp_path / "x").write_text("secret")
    folder = LocalFolder(tmp_path / "run")
    for verb in (folder.read, folder.size, folder.remove, lambda name: folder.write(name, b"")):
        with pytest.raises(UserError, match="not a name inside"):
            verb(name)
    assert (tmp_path / "x").read_text() == "secret"


def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    made = SmallStore(tmp_path)
    saved = made.save(1)
    saved.path.unlink()
    os.mkfifo(saved.path)
    with pytest.raises(Damaged, match="cannot be read"):
        read_manifest(saved)


def forged(made, change):
    """The newest manifest with a change, and the id that fits it, in place of the newest."""
    raw = json.loads(list_snapshots(made.path)[-1].path.read_text())
    list_snapshots(made.path)[-1].path.unlink()
    raw = change(raw) or raw
    content = canonical({key: value for key, value in raw.items() if key != "id"})
    id = blake3.blake3(content).hexdigest()
    path = made.path / manifest_file(raw["step"] if isinstance(raw["step"], int) else 0, id)
    path.write_bytes(b'{"id":"' + id.encode() + b'",' + content[1:] + b"\n")
    return next(snapshot for snapshot in list_snapshots(made.path) if snapshot.path == path)


def in_chunk(place, value):
    """Change a field of every chunk: 0 pack, 1 offset, 2 size, 3 codec, 4 base, 5 dtype, 6 count."""
    return lambda raw: [row.__setitem__(place, value) for row in raw["chunks"].values()] and None


FORGERIES = {
    "a pack elsewhere": (lambda raw: raw.update(packs=["../../x.pack"] * len(raw["packs"])), "not the name of a pack"),
    "an absolute pack": (lambda raw: raw.update(packs=["/etc/passwd"] * len(raw["packs"])), "not the name of a pack"),
    "no pack": (in_chunk(0, 99), "pack that is not listed"),
    "a negative pack": (in_chunk(0, -1), "natural number"),
    "a huge payload": (in_chunk(2, 1 << 50), "more than a chunk may have"),
    "a huge content": (in_chunk(6, 1 << 50), "more than a chunk may have"),
    "a negative offset": (in_chunk(1, -5), "more than a chunk may have"),
    "a truth for a size": (in_chunk(2, True), "another type"),
    "an unknown dtype": (in_chunk(5, "object"), "no dtype"),
    "a strange codec": (in_chunk(3, "../codec"), "codec"),
    "a base that is not there": (in_chunk(4, "0" * 40), "increment of a chunk that is not there"),
    "a base of its own": (lambda raw: [row.__setitem__(4, digest) for digest, row in raw["chunks"].items()] and None, "one of its own"),
    "a huge shape": (lambda raw: raw["tensors"]["w"].update(shape=[1 << 40]), "do not make up its shape"),
    "a negative shape": (lambda raw: raw["tensors"]["w"].update(shape=[-4, -16]), "natural number"),
    "cells of nothing": (lambda raw: raw["tensors"]["w"].update(cells=["0" * 40]), "are not there"),
    "a step that is text": (lambda raw: raw.update(step="1"), "natural number"),
    "a list of chunks": (lambda raw: raw.update(chunks=[]), "not an object"),
    "no numbers": (lambda raw: raw.pop("numbers") and None, "has no numbers"),
    "no object": (lambda raw: {"step": 0, "format": 3}, "has no"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_manifest_is_refused_by_name_before_anything_is_read_or_allocated(tmp_path, name):
    change, message = FORGERIES[name]
    made = SmallStore(tmp_path)
    made.save(1)
    made.save(2)
    snapshot = forged(made, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Damaged, match=message) as raised:
        read_manifest(snapshot)
    assert snapshot.file in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_a_manifest_that_was_changed_cut_or_filled_with_anything_is_damaged(tmp_path):
    made = SmallStore(tmp_path)
    saved = made.save(1)
    whole = saved.path.read_bytes()
    for content in (
        b"", whole[:-30], whole.replace(b'"step":1', b'"step":2'), b"[" * 100_000, b'{"format": 3, "id": NaN}', b"\xff\xfe", b"[3]", b"1" * 5000, b'"\\ud800"',
    ):  # fmt: skip
        saved.path.write_bytes(content)
        with pytest.raises(Damaged, match=re.escape(saved.file)):
            read_manifest(saved)
    saved.path.write_bytes(whole.replace(b'"format":3', b'"format":4'))
    with pytest.raises(Damaged, match=r"its format is 4, and this version of Penstock reads 3"):
        read_manifest(saved)


def test_a_manifest_whose_packs_are_not_there_is_not_published(tmp_path):
    made = SmallStore(tmp_path)
    made.save(1)
    for pack in (tmp_path / "packs").iterdir():
        pack.unlink()
    with pytest.raises(Damaged, match="is missing, which step 2 needs"):
        made.save(2)
    assert [snapshot.step for snapshot in list_snapshots(tmp_path)] == [1]


def test_ids_and_order_do_not_come_from_the_clock(tmp_path):
    made = SmallStore(tmp_path)
    first = made.save(1, created="2031-01-01T00:00:00+0000")
    second = made.save(2, created="1999-01-01T00:00:00+0000")
    again = made.save(2, parent=made.manifests[0], created="1998-01-01T00:00:00+0000")
    os.utime(second.path, (4e9, 4e9))
    assert list_snapshots(tmp_path) == [first, second, again], "of equal steps the history tells the newest"
    assert ChunkEntry("a.pack", 0, 1, "raw", None, "uint8", 1).check()
