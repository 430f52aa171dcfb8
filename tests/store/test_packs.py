"""Packs and manifests: given back as written, verified, refused by name when damaged."""


from penstock.store import LocalFolder, PackWriter, chunk_digest, read_chunk, read_manifest, read_pack, write_manifest
from penstock.store.manifest import Manifest, TensorEntry, list_snapshots


def some_snapshot(folder, step=1, parent=None, content=b"abcd"):
    digest = chunk_digest("uint8", content)
    with PackWriter(folder, f"{step}.pack") as pack:
        pack.add(digest, content, "raw", None, "uint8", len(content))
    return write_manifest(
        folder, Manifest(step, parent, "2026-01-01", {"w": TensorEntry((len(content),), "uint8", (digest,))}, dict(pack.entries), {"step": step}, {})
    )


def test_a_manifest_and_its_chunks_are_given_back(tmp_path):
    folder = LocalFolder(tmp_path / "run")
    saved = some_snapshot(folder, 7, content=b"12345")
    assert list_snapshots(folder) == [saved] and saved.step == 7 and saved.path.is_file()
    manifest = read_manifest(saved)
    (digest,) = manifest.tensors["w"].cells
    assert read_chunk(folder, digest, manifest.chunks[digest]) == b"12345"
    assert read_pack(folder, "7.pack") == manifest.chunks
    assert manifest.id.startswith(saved.id) and manifest.packs == ["7.pack"]
