"""A snapshot taken in any layout loads in any other, every bit of it, moments included."""

import functools

import pytest
import torch
from ranks import run_ranks

import penstock.store.cells.grid as grids
from penstock.comm import World
from penstock.config import UserError
from penstock.parallel import Layout, Mesh, Placement, Split, own_part
from penstock.store import Damaged, list_snapshots, load_partial, load_snapshot, read_manifest, save_snapshot

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


def small_cells():
    """Cells of a few numbers, so that small tensors have many, which straddle the ranks' boxes."""
    grids.CELL = 40


@pytest.fixture(autouse=True, scope="module")
def small_cells_here():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "CELL", 40)
        yield


def save_all(world, folder):
    small_cells()
    for which in LAYOUTS:
        if fits(which, world):
            save_snapshot(folder / which, 5, local_state(which, world), {"step": 5}, world, placements(which), LAYOUTS[which][0])


def load_all(world, folder):
    """Names of (saved in, loaded in) pairs that did not give back every bit on this rank."""
    small_cells()
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
    return run_ranks(save_and_load_all, 4, folder, timeout_s=300.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("snapshots")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_snapshot_of_any_layout_loads_in_any_other_bit_for_bit(folder, ranks):
    wrong = saved(folder)
    assert {path.name for path in folder.iterdir()} == LAYOUTS.keys()
    if ranks < 4:
        wrong = run_ranks(load_all, ranks, folder)
    assert wrong == [[]] * ranks


def test_every_layout_writes_the_same_cells_and_its_ranks_share_the_work(folder):
    saved(folder)
    written = {which: read_manifest(list_snapshots(folder / which)[0]) for which in LAYOUTS}
    assert all(manifest.tensors == written["one rank"].tensors for manifest in written.values())
    for which, manifest in written.items():
        assert manifest.chunks.keys() == {digest for tensor in manifest.tensors.values() for digest in tensor.cells}
        bytes_of_rank = [sum(entry.count * getattr(torch, entry.dtype).itemsize for entry in manifest.chunks.values() if entry.pack == pack) for pack in manifest.packs]
        assert len(bytes_of_rank) == LAYOUTS[which][0].ranks
        assert which == "one rank" or max(bytes_of_rank) < 0.65 * sum(bytes_of_rank), "uneven cuts may burden one more, but none with all"


def test_a_layout_that_lacks_a_tensor_is_refused_by_its_full_shape(folder):
    saved(folder)
    state = whole_state() | {"model.head": torch.zeros(11, 6)}
    with pytest.raises(UserError, match=r"model\.head is \(11, 5\) there and \(11, 6\) here"):
        load_snapshot(list_snapshots(folder / "grid")[0], state)


def load_damaged(world, folder):
    small_cells()
    try:
        load_snapshot(list_snapshots(folder)[0], local_state("two shards", world), world, placements("two shards"), LAYOUTS["two shards"][0])
    except Damaged as error:
        return str(error)
    return "no error"


def test_damage_that_one_rank_finds_stops_all(tmp_path):
    manifest = read_manifest(save_snapshot(tmp_path, 5, whole_state(), {}, World()))
    entry = manifest.chunks[manifest.tensors["model.wq"].cells[0]]
    file = tmp_path / "packs" / entry.pack
    content = bytearray(file.read_bytes())
    content[entry.offset + entry.size // 2] ^= 1
    file.write_bytes(content)
    said = run_ranks(load_damaged, 2, tmp_path)
    assert f"packs/{entry.pack} in {tmp_path} is damaged" in said[0] and "another rank found" in said[1]


def test_what_fits_is_taken_up_and_the_rest_is_named_and_left_alone(folder):
    saved(folder)
    expected, state = whole_state(), {name: torch.full_like(tensor, 3) for name, tensor in whole_state().items()}
    state |= {"model.head": torch.full((12, 5), 3.0), "model.new": torch.full((2,), 3.0)}
    del state["ema.norm"]
    numbers, left = load_partial(list_snapshots(folder / "grid")[0], state)
    assert numbers == {"step": 5} and left == ["model.head", "model.new"]
    assert all(torch.equal(tensor, expected[name]) if name not in left else (tensor == 3).all() for name, tensor in state.items())
