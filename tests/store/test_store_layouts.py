"""A snapshot taken in any layout loads in any other, every bit of it, moments included."""

import functools
import json

import pytest
import torch
from ranks import run_ranks
from safetensors import safe_open

from penstock.comm import World
from penstock.config import UserError
from penstock.parallel import Layout, Mesh, Placement, Split, own_part
from penstock.store import list_snapshots, load_snapshot, save_snapshot

SHAPES = {"wq": (7, 6), "head": (11, 5), "norm": (5,), "experts": (3, 4, 6), "bias_e": (3,)}
FSDP = Split(0, ("shard",))

#: Placements of the five tensors (those left out are whole everywhere) on layouts of one, two and four ranks.
LAYOUTS = {
    "replicas": (Layout(replicate=4), {}),
    "shards": (Layout(shard=4), {"wq": (FSDP,), "head": (FSDP,), "norm": (FSDP,), "experts": (Split(0, ("expert_shard",)),)}),
    "grid": (
        Layout(row=2, column=2, topology="2d"),
        {
            "wq": (Split(0, ("row",), 4), Split(1, ("column",))),
            "head": (Split(0, ("row",)), Split(1, ("column",))),
            "norm": (Split(0, ("column",)),),
            "experts": (Split(1, ("row",)), Split(2, ("column",))),
        },
    ),
    "rows sharded again": (Layout(shard=2, row=2), {"wq": (Split(0, ("row",), 3), FSDP), "head": (Split(1, ("row",)), FSDP), "norm": (FSDP,)}),
    "experts": (Layout(shard=4, expert=2), {"wq": (FSDP,), "experts": (Split(0, ("expert",)), Split(1, ("expert_shard",)))}),
    "experts in places": (Layout(shard=2, expert=2, row=2), {"experts": (((2, 0), (1, 2)), Split(1, ("row",)))}),
    "one rank": (Layout(), {}),
    "two shards": (Layout(shard=2), {"wq": (FSDP,), "head": (FSDP,), "norm": (FSDP,), "experts": (Split(1, ("expert_shard",)),)}),
    "two columns": (Layout(column=2), {"wq": (Split(1, ("column",)),), "head": (Split(1, ("column",)),), "experts": (Split(2, ("column",), 4),)}),
    "two places for experts": (Layout(shard=2, expert=2), {"wq": (FSDP,), "experts": (((1, 0), (2, 1)),)}),
}


def placements(which):
    plan = {}
    for name, cuts in LAYOUTS[which][1].items():
        slots = cuts[0] if cuts and not isinstance(cuts[0], Split) else ()
        plan[name] = Placement(SHAPES[name], tuple(cut for cut in cuts if isinstance(cut, Split)), slots)
    return {f"{kind}.{name}{moment}": p for name, p in plan.items() for kind, moment in (("model", ""), ("optim", ".exp_avg"), ("ema", ""))}


def whole_state():
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in SHAPES.items():
        for full in (f"model.{name}", f"optim.{name}.exp_avg", f"ema.{name}"):
            state[full] = torch.randn(shape, generator=generator)
        state[f"optim.{name}.step"] = torch.tensor(7.0)
    state["model.wq"], state["ema.updates"] = state["model.wq"].bfloat16(), torch.tensor(3.0, dtype=torch.float64)
    return state


def local_state(which, world):
    mesh, plan = Mesh(LAYOUTS[which][0], world), placements(which)
    return {name: own_part(tensor, plan[name], mesh) if name in plan else tensor for name, tensor in whole_state().items()}


def fits(which, world):
    return LAYOUTS[which][0].ranks == world.size


def save_all(world, folder):
    for which in LAYOUTS:
        if fits(which, world):
            save_snapshot(folder / which, 5, local_state(which, world), {"step": 5}, world, 0, placements(which), LAYOUTS[which][0])


def load_all(world, folder):
    """Names of (saved in, loaded in) pairs that did not give back every bit on this rank."""
    wrong = []
    for saved in sorted(folder.iterdir()):
        for which in LAYOUTS:
            if fits(which, world):
                expected = local_state(which, world)
                got = {name: torch.full_like(tensor, float("nan")) for name, tensor in expected.items()}
                numbers = load_snapshot(list_snapshots(saved)[0], got, world, placements(which), LAYOUTS[which][0])
                same = all(torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype for name, tensor in expected.items())
                if numbers != {"step": 5} or not same:
                    wrong.append((saved.name, which))
    return wrong


def save_and_load_all(world, folder):
    save_all(world, folder)
    return load_all(world, folder)


@functools.cache
def saved(folder):
    """Snapshots of every layout, and what went wrong when the four ranks loaded those of four ranks."""
    save_all(World(), folder)
    run_ranks(save_all, 2, folder)
    return run_ranks(save_and_load_all, 4, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("snapshots")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_snapshot_of_any_layout_loads_in_any_other_bit_for_bit(folder, ranks):
    wrong = saved(folder)
    assert {path.name for path in folder.iterdir()} == LAYOUTS.keys()
    if ranks < 4:
        wrong = run_ranks(load_all, ranks, folder)
    assert wrong == [[]] * ranks


@pytest.mark.parametrize("which", LAYOUTS)
def test_every_number_is_written_once_whoever_holds_it_and_ranks_share_the_work(folder, which):
    saved(folder)
    snapshot, expected = list_snapshots(folder / which)[0], whole_state()
    counts, bytes_of_rank = dict.fromkeys(expected, 0), []
    for file in sorted(snapshot.path.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        bytes_of_rank.append(sum(tensor.nbytes for tensor in tensors.values()))
        for key, tensor in tensors.items():
            counts[key.partition("@")[0]] += tensor.numel()
    assert counts == {name: tensor.numel() for name, tensor in expected.items()}
    assert len(bytes_of_rank) == LAYOUTS[which][0].ranks
    assert which == "one rank" or max(bytes_of_rank) < 0.65 * sum(bytes_of_rank), "uneven cuts may burden one more, but none with all"


def test_a_layout_that_lacks_a_tensor_is_refused_by_its_full_shape(folder):
    saved(folder)
    state = whole_state() | {"model.head": torch.zeros(11, 6)}
    with pytest.raises(UserError, match=r"model\.head is \(11, 5\) there and \(11, 6\) here"):
        load_snapshot(list_snapshots(folder / "grid")[0], state)


def load_damaged(world, folder):
    try:
        load_snapshot(list_snapshots(folder)[0], local_state("two shards", world), world, placements("two shards"), LAYOUTS["two shards"][0])
    except UserError as error:
        return str(error)
    return "no error"


def test_damage_that_one_rank_finds_stops_all(tmp_path):
    save_snapshot(tmp_path, 5, whole_state(), {}, World())
    snapshot = list_snapshots(tmp_path)[0]
    file = next(snapshot.path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said = run_ranks(load_damaged, 2, tmp_path)
    assert "rank-00000.safetensors is missing or its checksum differs" in said[0] and "another rank found" in said[1]


def test_a_snapshot_of_another_format_is_refused(tmp_path):
    snapshot = save_snapshot(tmp_path, 5, whole_state(), {}, World())
    manifest = json.loads((snapshot.path / "snapshot.json").read_text())
    (snapshot.path / "snapshot.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(UserError, match=r"has format 1, and this version of Penstock reads 2"):
        load_snapshot(snapshot, whole_state())


def test_files_that_lack_a_part_of_a_tensor_are_refused(folder, tmp_path):
    saved(folder)
    source = list_snapshots(folder / "shards")[0].path
    target = tmp_path / "step-00000005"
    target.mkdir()
    manifest = json.loads((source / "snapshot.json").read_text())
    del manifest["files"]["rank-00001.safetensors"]
    for name in manifest["files"]:
        (target / name).write_bytes((source / name).read_bytes())
    (target / "snapshot.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="damaged: its files hold only a part of"):
        load_snapshot(list_snapshots(tmp_path)[0], whole_state())
