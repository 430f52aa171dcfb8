"""Torch's distributed checkpoint and safetensors judge what we write, and we read what they write; no pickle is ever obeyed."""

import collections
import contextlib
import io
import json
import os
import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import Shard, distribute_tensor

from penstock.config import UserError
from penstock.store.formats import WRITERS, open_foreign, sharded

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:Detected pickle protocol")


def some_state():
    generator = torch.Generator().manual_seed(1)
    return {
        "model.wq": torch.randn(5, 7, generator=generator),
        "model.norm": torch.randn(6, generator=generator).bfloat16(),
        "model.bias": torch.zeros(0, 3),
        "optim.wq.exp_avg": torch.randn(5, 7, generator=generator, dtype=torch.float64),
        "optim.wq.step": torch.tensor(7.0),
        "count": torch.arange(4),
    }


def written(folder, kind, state):
    folder.mkdir()
    WRITERS[kind](folder, {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}, state.__getitem__)
    return folder


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def ours(folder):
    foreign = open_foreign(folder)
    tensors = {name: foreign.read(name) for name in foreign.described}
    assert all((tuple(tensor.shape), tensor.dtype) == foreign.described[name] for name, tensor in tensors.items())
    return tensors


def zeros_like(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def test_torch_reads_the_checkpoint_that_we_write(tmp_path):
    state = some_state()
    folder = written(tmp_path / "out", "dcp", state)
    loaded = zeros_like(state)
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    assert same(loaded, state) and same(ours(folder), state)
    dcp_to_torch_save(folder, tmp_path / "all.pt")
    assert same(torch.load(tmp_path / "all.pt", weights_only=True), state)


def test_safetensors_reads_the_files_that_we_write(tmp_path, monkeypatch):
    state = some_state()
    monkeypatch.setattr(sharded, "FILE_BYTES", 300)
    folder = written(tmp_path / "out", "safetensors", state)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1 and same({name: tensor for file in files for name, tensor in load_file(file).items()}, state)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == state.keys() and index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    assert same(ours(folder), state)
    loaded = zeros_like(state)
    dcp.load(loaded, storage_reader=HuggingFaceStorageReader(folder), no_dist=True)
    assert same(loaded, state)


def save_shards(world, folder):
    from torch.distributed.device_mesh import init_device_mesh

    mesh, state = init_device_mesh("cpu", (world.size,)), some_state()
    cut = {name: distribute_tensor(state[name], mesh, [Shard(dim)]) for name, dim in (("model.wq", 1), ("optim.wq.exp_avg", 0))}
    dcp.save({"model.norm": state["model.norm"], "nested": {"lr": 0.1, "list": [state["count"]]}} | cut, checkpoint_id=folder)


def test_we_read_what_torch_and_safetensors_write(tmp_path):
    state = some_state()
    run_ranks(save_shards, 2, tmp_path / "cut")
    foreign = open_foreign(tmp_path / "cut")
    assert foreign.others == ["nested.lr"] and foreign.described.keys() == {"model.norm", "model.wq", "optim.wq.exp_avg", "nested.list.0"}
    assert all(torch.equal(foreign.read(name), state["count" if name.startswith("nested") else name]) for name in foreign.described)
    dcp.save(state, checkpoint_id=tmp_path / "whole", no_dist=True)
    assert same(ours(tmp_path / "whole"), state)
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(tmp_path / "hf", fqn_to_index_mapping=dict.fromkeys(state, 1)), no_dist=True)
    assert same(ours(tmp_path / "hf"), state)
    (tmp_path / "one").mkdir()
    save_file(state, tmp_path / "one" / "anything.safetensors")
    assert same(ours(tmp_path / "one"), state)


class Marks:
    """Creates a file when it is unpickled."""

    def __init__(self, path, call=os.mkdir):
        self.path, self.call = str(path), call

    def __reduce__(self):
        return self.call, (self.path,)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return written(tmp_path_factory.mktemp("dcp") / "out", "dcp", some_state())


def offered(checkpoint, tmp_path, content):
    folder = tmp_path / "offered"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    (folder / ".metadata").write_bytes(content)
    return folder


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "hostile",
    [
        lambda mark: Marks(mark),
        lambda mark: Metadata(state_dict_metadata={"a": Marks(mark)}, storage_data={}),
        lambda mark: Marks(mark, eval),
        lambda mark: Marks(mark, torch.load),
        lambda mark: Metadata(state_dict_metadata=collections.OrderedDict(), storage_data={}),
    ],
)
def test_a_malicious_pickle_in_place_of_the_metadata_is_refused_by_name_and_never_run(checkpoint, tmp_path, hostile, protocol):
    folder = offered(checkpoint, tmp_path, pickle.dumps(hostile(tmp_path / "ran"), protocol))
    with pytest.raises(UserError, match=r"names (posix|nt|builtins|__builtin__|torch\.serialization|collections|copy_reg|copyreg)\.\w+, which has no place"):
        open_foreign(folder)
    assert not (tmp_path / "ran").exists()


def test_names_that_lead_on_from_allowed_ones_are_refused_too(checkpoint, tmp_path):
    for module, name in (("torch", "Size.__class__"), ("torch", "load"), ("torch.distributed.checkpoint.metadata", "os"), ("torch.serialization", "os")):
        with pytest.raises(UserError, match="which has no place"):
            open_foreign(offered(checkpoint, tmp_path, b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."))
    with pytest.raises(UserError, match="outside the file"):
        open_foreign(offered(checkpoint, tmp_path, b"\x80\x04\x8c\x01xQ."))


def changed(checkpoint, change):
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    change(metadata)
    return pickle.dumps(metadata)


def info(metadata):
    return next(info for index, info in metadata.storage_data.items() if index.fqn == "model.wq")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: setattr(info(m), "relative_path", "../../etc/passwd"), "not in the checkpoint's folder"),
        (lambda m: setattr(info(m), "relative_path", "/etc/passwd"), "not in the checkpoint's folder"),
        (lambda m: setattr(info(m), "offset", -5), "where sizes belong"),
        (lambda m: setattr(info(m), "length", 9), "cannot hold it"),
        (lambda m: setattr(info(m), "transform_descriptors", ["zstd"]), "without extensions"),
        (lambda m: setattr(m.state_dict_metadata["model.wq"], "size", torch.Size([50, 7])), "do not make up its shape"),
        (lambda m: setattr(m.state_dict_metadata["model.wq"], "size", torch.Size([2, 7])), "outside its shape"),
        (lambda m: setattr(m.state_dict_metadata["model.wq"], "chunks", 3), "in what parts"),
        (lambda m: m.storage_data.clear(), "has no part of"),
        (lambda m: setattr(m, "storage_data", None), "lacks a table"),
        (lambda m: m.state_dict_metadata.update(x=m), "Metadata where TensorStorageMetadata belongs"),
    ],
)
def test_metadata_that_does_not_hold_together_is_refused(checkpoint, tmp_path, change, complaint):
    with pytest.raises(UserError, match=complaint):
        open_foreign(offered(checkpoint, tmp_path, changed(checkpoint, change)))


def test_items_that_are_not_the_tensors_they_should_be_are_refused(checkpoint, tmp_path):
    folder = offered(checkpoint, tmp_path, (checkpoint / ".metadata").read_bytes())
    file = folder / info(pickle.loads((folder / ".metadata").read_bytes())).relative_path
    buffer = io.BytesIO()
    torch.save(Marks(tmp_path / "ran"), buffer)
    for content in (buffer.getvalue(), b"", file.read_bytes()[:-300], pickle.dumps(Marks(tmp_path / "ran"))):
        file.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            open_foreign(folder).read("model.wq")
    torch.save(torch.zeros(1), file)
    with pytest.raises(UserError, match=r"damaged|something else than float32"):
        open_foreign(folder).read("model.wq")
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        open_foreign(folder).read("model.wq")
    assert not (tmp_path / "ran").exists()


@settings(max_examples=60)
@given(data=st.data())
def test_damage_to_the_metadata_is_an_error_for_people_or_makes_no_difference(checkpoint, tmp_path_factory, data):
    content = bytearray((checkpoint / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / ".metadata").write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))] if data.draw(st.booleans()) else content)
    with contextlib.suppress(UserError):
        open_foreign(folder)


def test_safetensors_that_are_damaged_or_ambiguous_are_refused(tmp_path):
    folder = written(tmp_path / "out", "safetensors", some_state())
    file = next(folder.glob("*.safetensors"))
    shutil.copy(file, folder / "more.safetensors")
    assert same(ours(folder), some_state()), "the index says which files belong"
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="both hold"):
        open_foreign(folder)
    for index, complaint in (('{"weight_map": {"a": "../x.safetensors"}}', "not a file in that folder"), ("[]", "is damaged"), ("{", "is damaged")):
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(UserError, match=complaint):
            open_foreign(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "more.safetensors").write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match="missing or damaged"):
        open_foreign(folder)
    with pytest.raises(UserError, match="neither a torch distributed checkpoint"):
        open_foreign(tmp_path)
